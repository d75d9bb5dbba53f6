// A reader that checks what reader.h says the loop must do, fails where the test says so, and can hold reads until the
// test releases them. Reads that are not held complete inside Submit.
#pragma once
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "reader/open_file.h"

namespace fst {

// What the test controls and observes. Shared with the reader, which the engine owns.
struct ReaderScript {
  ReaderNeeds needs;
  Status start;
  int fail_submit_at = 0, fail_open_at = 0;  // the nth; 0: none
  std::atomic<bool> hold{false};             // reads wait for Release
  std::atomic<bool> hold_opens{false};       // opens wait for Release
  std::atomic<bool> hold_closes{false};      // so do closes
  std::atomic<bool> hold_start{false};       // so does Start, on the I/O thread
  bool repeats = false;                      // completes each read twice, against the contract

  std::atomic<int> submits{0}, opens{0}, needs_calls{0};
  std::atomic<bool> gone{false};

  // Waits until `count` reads are held.
  void WaitHeld(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    ASSERT_TRUE(wake_.wait_for(lock, std::chrono::seconds(60), [&] { return held_.size() >= count; }));
  }
  size_t Held() {
    std::lock_guard<std::mutex> lock(mutex_);
    return held_.size();
  }
  // Any thread. Carries out what is held, however late, and stops holding.
  void Release() {
    std::vector<HeldRead> held;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      hold = hold_opens = hold_closes = hold_start = false;
      held.swap(held_);
    }
    wake_.notify_all();
    for (HeldRead& read : held) Finish(std::move(read.request), read.tag);
  }
  // Carries out the read that has been held longest and goes on holding the others. Returns its tag.
  uint64_t ReleaseOne() {
    HeldRead read;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      read = std::move(held_.front());
      held_.erase(held_.begin());
    }
    Finish(std::move(read.request), read.tag);
    return read.tag;
  }
  // Puts a completion for a read, whatever its state.
  void Complete(uint64_t tag) { queue_->Put({Completion::Kind::kRead, tag, Status::Ok()}); }

  void WaitUntilNot(const std::atomic<bool>& held) {
    std::unique_lock<std::mutex> lock(mutex_);
    wake_.wait(lock, [&] { return !held; });
  }

 private:
  friend class ScriptedReader;
  struct HeldRead {
    ReadRequest request;
    uint64_t tag;
  };

  void Finish(ReadRequest request, uint64_t tag) {
    Status status = Deliver(request);
    request.file.reset();
    if (repeats) queue_->Put({Completion::Kind::kRead, tag, status});
    queue_->Put({Completion::Kind::kRead, tag, status});
  }

  static Status Deliver(const ReadRequest& request) {
    const auto& file = static_cast<const FdFile&>(*request.file);
    uint64_t offset = request.offset;
    size_t arrived = 0;
    for (const ReadPiece& piece : request.pieces) {
      offset += piece.skip;
      arrived += piece.skip;
      auto* to = reinterpret_cast<char*>(piece.address);
      memset(to, 0x5A, piece.length);  // also bytes beyond `required`: they must be nobody's
      for (size_t i = 0; i < piece.runs; ++i) {
        const off_t from = static_cast<off_t>(offset + i * piece.stride);
        ssize_t got = pread(file.fd(), to + i * piece.run(), piece.run(), from);
        if (got > 0) arrived += static_cast<size_t>(got) + (i > 0 ? piece.stride - piece.run() : 0);
      }
      offset += piece.file_length();
    }
    if (arrived < request.required) return Status(Code::UNEXPECTED_EOF, "the file ends early").At(file.path());
    return Status::Ok();
  }

  std::shared_ptr<CompletionQueue> queue_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<HeldRead> held_;
};

class ScriptedFile : public FdFile {
 public:
  ScriptedFile(const std::string& path, const FileIdentity& identity, UniqueFd fd, std::shared_ptr<ReaderScript> script)
      : FdFile(path, identity, std::move(fd)), script_(std::move(script)) {}
  ~ScriptedFile() override { script_->WaitUntilNot(script_->hold_closes); }
  std::atomic<bool> last_seen{false};

 private:
  std::shared_ptr<ReaderScript> script_;
};

class ScriptedReader : public Reader {
 public:
  explicit ScriptedReader(std::shared_ptr<ReaderScript> script) : script_(std::move(script)) {}
  ~ScriptedReader() override { script_->gone = true; }

  const ReaderNeeds& needs() const override {
    ++script_->needs_calls;
    return script_->needs;
  }

  Status Start(std::shared_ptr<CompletionQueue> queue, const std::shared_ptr<Device>& device) override {
    EXPECT_NE(device, nullptr);
    script_->queue_ = std::move(queue);
    script_->WaitUntilNot(script_->hold_start);
    return script_->start;
  }

  Status Open(const std::string& path, const FileIdentity& expected, std::shared_ptr<ReaderFile>* out) override {
    script_->WaitUntilNot(script_->hold_opens);
    if (++script_->opens == script_->fail_open_at) return Status(Code::IO_ERROR, "told to fail this open").At(path);
    UniqueFd fd;
    FST_RETURN_IF_ERROR(OpenUnchanged(path, 0, expected, &fd));
    *out = std::make_shared<ScriptedFile>(path, expected, std::move(fd), script_);
    return Status::Ok();
  }

  Status Submit(ReadRequest request, uint64_t tag) override {
    CheckContract(request);
    if (++script_->submits == script_->fail_submit_at) return Status(Code::IO_ERROR, "told to fail this submission");
    {
      std::lock_guard<std::mutex> lock(script_->mutex_);
      if (script_->hold) {
        script_->held_.push_back({std::move(request), tag});
        script_->wake_.notify_all();
        return Status::Ok();
      }
    }
    script_->Finish(std::move(request), tag);
    return Status::Ok();
  }

 private:
  void CheckContract(const ReadRequest& request) {
    const ReaderNeeds& needs = script_->needs;
    ASSERT_NE(request.file, nullptr);
    EXPECT_EQ(request.offset % needs.offset_alignment, 0U);
    EXPECT_EQ(request.length % needs.length_alignment, 0U);
    EXPECT_GT(request.required, 0U);
    EXPECT_LE(request.required, request.length);
    EXPECT_LE(request.offset + request.required, request.file->size());
    EXPECT_LT(request.offset + request.length, request.file->size() + needs.length_alignment);
    if (needs.boundary > 0) {
      EXPECT_EQ(request.offset / needs.boundary, (request.offset + request.length - 1) / needs.boundary);
    }
    ASSERT_FALSE(request.pieces.empty());
    EXPECT_LE(request.pieces.size(), needs.skips ? 6144U : needs.scatters ? 1024U : 1U);
    size_t total = 0;
    for (const ReadPiece& piece : request.pieces) {
      EXPECT_EQ(piece.address % needs.memory_alignment, 0U);
      EXPECT_LE(piece.base, piece.address);
      EXPECT_TRUE(piece.skip == 0 || needs.skips);
      total += piece.skip + piece.file_length();
      if (piece.runs > 1) {
        EXPECT_EQ(piece.length % piece.runs, 0U);
        EXPECT_GT(piece.stride, piece.run());
        EXPECT_LT(piece.stride - piece.run(), needs.picks_holes);
      }
    }
    EXPECT_EQ(total, request.length);
    auto& file = static_cast<ScriptedFile&>(*request.file);
    EXPECT_FALSE(file.last_seen.exchange(request.last)) << "a read after the last one of " << file.path();
  }

  std::shared_ptr<ReaderScript> script_;
};

}  // namespace fst
