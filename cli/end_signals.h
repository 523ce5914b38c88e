// The signals that ask a server to end.
#ifndef QUIRE_CLI_END_SIGNALS_H_
#define QUIRE_CLI_END_SIGNALS_H_

#include <pthread.h>
#include <signal.h>

namespace quire {

// SIGTERM, SIGINT, and SIGHUP, which comes when a terminal goes (often twice),
// unless the process was started to ignore it, as by nohup. Blocks them in this
// thread and in those that it starts: for sigwait.
inline sigset_t BlockEndSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  struct sigaction on_hangup = {};
  sigaction(SIGHUP, nullptr, &on_hangup);
  if (on_hangup.sa_handler != SIG_IGN) sigaddset(&signals, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  return signals;
}

}  // namespace quire

#endif  // QUIRE_CLI_END_SIGNALS_H_
