// One HTTP request, as the output thread sees it: what takes the engine's
// events and makes an answer of them.
#ifndef QUIRE_SERVER_CALL_H_
#define QUIRE_SERVER_CALL_H_

#include <optional>

#include "absl/status/status.h"
#include "engine/request.h"

namespace quire {

// Thread-compatible: used by the output thread alone, unless a class says
// otherwise.
class Call {
 public:
  virtual ~Call() = default;

  // Every part of the call was accepted. Streams: sends the head of the answer;
  // nothing is written before. Idempotent.
  virtual void Start() = 0;
  // Takes an event of choice `choice_idx` (of the whole call). Returns true if
  // the choice ended by what the engine does not know (a stop string): the
  // engine should abort it. Events of choices that have ended are ignored. It
  // may fail the call, which then is_complete().
  virtual bool Append(int choice_idx, const OutputEvent& event) = 0;
  // Writes what the last Appends made.
  virtual void Flush() = 0;
  // Ends the call with an error.
  virtual void Fail(const absl::Status& error) = 0;

  // The client has not taken what was written before: more can wait.
  virtual bool is_behind() const { return false; }
  // A step's part of the answer takes longer to be written than a token's text.
  virtual bool is_costly() const { return false; }
  // Of who calls this: events wait, and a flush, until there is time.
  bool are_events_deferred = false;
  bool is_flush_deferred = false;

  virtual void AddCachedTokens(int num_tokens) = 0;
  virtual bool is_complete() const = 0;
  // Why the choice ended, as the client is told; none if it has not, or Fail
  // ended it.
  virtual std::optional<FinishReason> finish_reason(int choice_idx) const = 0;
};

}  // namespace quire

#endif  // QUIRE_SERVER_CALL_H_
