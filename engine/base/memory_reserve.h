// Memory for the work that was begun when the process gets no more.
//
// When an allocation of C++ fails, operator new asks a handler and tries again.
// Ours gives pieces of a reserve back to the allocator, so that no thread ever
// sees bad_alloc: neither the engine's data nor the libraries we use survive
// one (a hash table of abseil 20220623 that cannot grow is left broken; the
// destructor of nlohmann's JSON 3.11.2 allocates). Instead nothing new is begun
// until the reserve is full again: RefillMemoryReserve, HasMemoryFor.
//
// Where the system kills instead of refusing (overcommit, a cgroup's limit)
// none of this is reached; it is for limits on address space, strict
// overcommit, and the faults that tests inject.
#ifndef QUIRE_ENGINE_BASE_MEMORY_RESERVE_H_
#define QUIRE_ENGINE_BASE_MEMORY_RESERVE_H_

#include <cstddef>

namespace quire {

// Sets the process's new handler. Call once. When the reserve is used up, too,
// the process ends with a line on stderr and exit code 70: what the thread was
// doing cannot be finished.
void InstallMemoryReserve();

// True if the reserve is full, again, or was never installed. Thread-safe, and
// cheap while it is full.
bool RefillMemoryReserve();

// Whether an allocation of so many bytes would succeed now, beside the reserve.
bool HasMemoryFor(size_t num_bytes);

}  // namespace quire

#endif  // QUIRE_ENGINE_BASE_MEMORY_RESERVE_H_
