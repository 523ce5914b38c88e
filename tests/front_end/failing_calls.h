// Every allocation and system call of a request, failed once.
#ifndef QUIRE_TESTS_FRONT_END_FAILING_CALLS_H_
#define QUIRE_TESTS_FRONT_END_FAILING_CALLS_H_

#include <string>
#include <vector>

#include "tests/front_end/fault_control.h"
#include "tests/front_end/figure.h"

namespace quire {

// Asks for a plain and a streamed answer again and again; each time one more of
// the calls made meanwhile fails, of those every `stride`-th from `offset` on.
// `program` as in ServerProcessOptions. After each: the server lives, nothing
// is held, and the next request is answered as ever.
std::vector<Figure> RunFailingCalls(FaultKind kind, int stride, int offset,
                                    const std::string& program);

}  // namespace quire

#endif  // QUIRE_TESTS_FRONT_END_FAILING_CALLS_H_
