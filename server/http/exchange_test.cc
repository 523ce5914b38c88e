#include "server/http/exchange.h"

#include <sys/eventfd.h>

#include <memory>
#include <string>
#include <utility>

#include "gtest/gtest.h"

namespace quire {
namespace {

// How often the mailbox has rung since the last call.
int NumRings(const Mailbox& mailbox) {
  eventfd_t count = 0;
  return eventfd_read(mailbox.event_fd(), &count) == 0 ? count : 0;
}

class ExchangeTest : public testing::Test {
 protected:
  ~ExchangeTest() override { mailbox_->Close(); }

  // Exchanges that were posted since the last call.
  size_t NumPosted() {
    mailbox_->Take(&mail_);
    return mail_.exchanges.size();
  }

  std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  std::shared_ptr<Exchange> exchange_ = std::make_shared<Exchange>(mailbox_);
  Mailbox::Contents mail_;
};

TEST_F(ExchangeTest, RingsOnceForABurstAndOnlyForASleeper) {
  exchange_->StartStream({});
  EXPECT_EQ(NumRings(*mailbox_), 0);  // Awake: it looks before it sleeps.
  EXPECT_FALSE(mailbox_->PrepareToSleep());
  EXPECT_EQ(NumPosted(), 1);
  exchange_->Take();
  EXPECT_TRUE(mailbox_->PrepareToSleep());
  auto other = std::make_shared<Exchange>(mailbox_);
  exchange_->Write("a");
  other->Send(200, "text/plain", "b", {});
  exchange_->Write("c");
  EXPECT_EQ(NumRings(*mailbox_), 1);
  EXPECT_EQ(NumPosted(), 2);  // Each once, however often it was written.
  EXPECT_EQ(exchange_->Take().data, "ac");
}

TEST_F(ExchangeTest, ABurstRingsForASleeperAtItsEnd) {
  const auto other_mailbox = std::make_shared<Mailbox>();
  const auto other = std::make_shared<Exchange>(other_mailbox);
  {
    WriteBurst burst;
    exchange_->StartStream({});
    other->StartStream({});
    burst.Deliver();
    EXPECT_EQ(NumRings(*mailbox_), 0);  // Awake.
    EXPECT_EQ(NumPosted(), 1);
    exchange_->Take();
    ASSERT_TRUE(mailbox_->PrepareToSleep());
    exchange_->Write("a");
    EXPECT_EQ(NumRings(*mailbox_), 0);
    burst.Deliver();
    EXPECT_EQ(NumRings(*mailbox_), 1);
    // It has been woken: nothing more is to be done.
    exchange_->Write("b");
    burst.Deliver();
    EXPECT_EQ(NumRings(*mailbox_), 0);
    EXPECT_EQ(NumPosted(), 1);
    EXPECT_EQ(exchange_->Take().data, "ab");
    // Those of two servers.
    Mailbox::Contents mail;
    other_mailbox->Take(&mail);
    other->Take();
    ASSERT_TRUE(mailbox_->PrepareToSleep());
    ASSERT_TRUE(other_mailbox->PrepareToSleep());
    exchange_->Write("c");
    other->Write("d");
  }
  EXPECT_EQ(NumRings(*mailbox_), 1);
  EXPECT_EQ(NumRings(*other_mailbox), 1);
  ASSERT_EQ(NumPosted(), 1);
  exchange_->Take();
  ASSERT_TRUE(mailbox_->PrepareToSleep());
  exchange_->Write("e");  // No burst.
  EXPECT_EQ(NumRings(*mailbox_), 1);
  other_mailbox->Close();
}

TEST_F(ExchangeTest, StreamStates) {
  exchange_->Write("before the start");
  exchange_->Finish();
  EXPECT_EQ(NumPosted(), 0);
  exchange_->StartStream({{"A", "b"}});
  exchange_->StartStream({});
  exchange_->Write("1");
  exchange_->Finish();
  exchange_->Write("2");
  exchange_->Send(200, "text/plain", "3", {});
  exchange_->Fail(500, "4");
  const Exchange::Update update = exchange_->Take();
  ASSERT_TRUE(update.start.has_value());
  EXPECT_TRUE(update.start->is_stream);
  EXPECT_EQ(update.start->headers.size(), 1);
  EXPECT_EQ(update.data, "1");
  EXPECT_TRUE(update.is_finished);
  EXPECT_FALSE(update.is_broken);
}

TEST_F(ExchangeTest, FailuresDependOnWhatWasSent) {
  exchange_->Fail(500, "sorry");
  Exchange::Update update = exchange_->Take();
  ASSERT_TRUE(update.start.has_value());
  EXPECT_EQ(update.start->status, 500);
  EXPECT_EQ(update.data, "sorry");
  EXPECT_TRUE(update.is_finished);
  auto stream = std::make_shared<Exchange>(mailbox_);
  stream->StartStream({});
  stream->Fail(500, "sorry");
  update = stream->Take();
  EXPECT_TRUE(update.is_broken);
  EXPECT_EQ(update.data, "");
}

TEST_F(ExchangeTest, DroppingTheResponderFails) {
  MakeResponder(exchange_, "dropped").reset();
  EXPECT_EQ(exchange_->Take().data, "dropped");
}

TEST_F(ExchangeTest, NothingAfterTheEnd) {
  int num_calls = 0;
  exchange_->OnDisconnect([&] { ++num_calls; });
  exchange_->EndDisconnected();
  exchange_->EndDisconnected();
  EXPECT_EQ(num_calls, 1);
  exchange_->Send(200, "text/plain", "x", {});
  exchange_->StartStream({});
  exchange_->Fail(500, "x");
  EXPECT_EQ(NumPosted(), 0);
}

TEST_F(ExchangeTest, LateCallbacksRunOnTheReader) {
  int num_calls = 0;
  exchange_->EndDisconnected();
  exchange_->OnDisconnect([&] { ++num_calls; });
  EXPECT_EQ(num_calls, 0);
  mailbox_->Take(&mail_);
  ASSERT_EQ(mail_.tasks.size(), 1);
  mail_.tasks[0]();
  EXPECT_EQ(num_calls, 1);
  mailbox_->Close();
  exchange_->OnDisconnect([&] { ++num_calls; });  // Nobody else is left.
  EXPECT_EQ(num_calls, 2);
}

TEST_F(ExchangeTest, FlushedAnswersLetTheCallbackGo) {
  // The usual cycle: the exchange's callback holds its responder.
  std::weak_ptr<HttpResponder> watched;
  {
    auto responder = MakeResponder(exchange_, "");
    watched = responder;
    responder->OnDisconnect([responder] { FAIL(); });
    responder->Send(200, "text/plain", "x", {});
  }
  EXPECT_FALSE(watched.expired());
  exchange_->EndFlushed();
  EXPECT_TRUE(watched.expired());
  bool is_called = false;
  exchange_->OnDisconnect([&] { is_called = true; });
  mailbox_->Take(&mail_);
  EXPECT_TRUE(mail_.tasks.empty());
  EXPECT_FALSE(is_called);
}

TEST(MailboxTest, CloseReturnsWhatWasLeft) {
  Mailbox mailbox;
  EXPECT_TRUE(mailbox.PostTask([] {}));
  EXPECT_EQ(mailbox.Close().tasks.size(), 1);
  EXPECT_FALSE(mailbox.PostTask([] {}));
  EXPECT_FALSE(mailbox.PostExchange(nullptr));
}

}  // namespace
}  // namespace quire
