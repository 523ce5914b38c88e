// How the process ends; documented in README.md.
#ifndef QUIRE_CLI_EXIT_CODES_H_
#define QUIRE_CLI_EXIT_CODES_H_

namespace quire {

inline constexpr int kExitOk = 0;
inline constexpr int kExitRequestsFailed = 1;  // Of a benchmark: some or all.
inline constexpr int kExitUsage = 64;          // Command line or configuration.
inline constexpr int kExitModel = 65;          // The model's files.
inline constexpr int kExitDevice = 69;         // Device, memory or address.
inline constexpr int kExitEngine = 70;  // The engine failed while serving.
inline constexpr int kExitDrainTimeout = 75;
inline constexpr int kExitInterrupted = 130;  // A benchmark, by a signal.

}  // namespace quire

#endif  // QUIRE_CLI_EXIT_CODES_H_
