// Loads of files on an emulated 3FS mount through the engine, and what has to hold after each.
#pragma once
#include <algorithm>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <set>

#include "base/metrics.h"
#include "device/devices.h"
#include "emulated_cuda.h"
#include "hf3fs_emulator_fixture.h"
#include "reader/usrbio/usrbio_files.h"
#include "reader/usrbio/usrbio_lost_fds.h"
#include "reader/usrbio/usrbio_pool.h"
#include "reader/usrbio/usrbio_reader.h"
#include "transfer/engine.h"

namespace fst {

inline constexpr uint64_t kMi = uint64_t{1} << 20;

class UsrbioReaderTest : public Hf3fsEmulatorTest {
 protected:
  using Bytes = std::vector<uint8_t>;

  void TearDown() override {
    DropIdle();
    GiveBackLostFds();
    EXPECT_EQ(LeftInShm(), std::set<std::string>());
    EXPECT_EQ(Metrics::Get().rings.load(), 0);
    EXPECT_EQ(Metrics::Get().staging_bytes.load(), 0);
    EXPECT_EQ(Metrics::Get().open_files.load(), 0);
    EXPECT_EQ(Metrics::Get().in_flight.load(), 0);
    Hf3fsEmulatorTest::TearDown();
  }

  // What is kept for a next loader goes.
  static void DropIdle() {
    usrbio::DropIdleChannels(std::chrono::seconds(20));
    EXPECT_EQ(Metrics::Get().idle_rings.load(), 0);
    EXPECT_EQ(Metrics::Get().idle_bytes.load(), 0);
  }

  // What a daemon that died here has left taken comes back with the next file that is opened.
  void GiveBackLostFds() {
    if (usrbio::LostFds() == 0) return;
    Call<void()>("fst_emu_hf3fs_reset")();
    const std::string path = WriteFile("any", 1);
    FileIdentity identity;
    EXPECT_TRUE(FileIdentity::OfPath(path, &identity));
    usrbio::Files files(*api, mount);
    std::shared_ptr<ReaderFile> file;
    Status opened = files.Open(path, identity, &file);
    EXPECT_TRUE(opened.ok()) << opened.message();
    EXPECT_EQ(usrbio::LostFds(), 0u);
  }

  // Names that this test left in /dev/shm. Other processes' come and go meanwhile: only what stays counts.
  std::set<std::string> LeftInShm() const {
    std::set<std::string> left = ShmFiles();
    for (const std::string& name : shm_before_) left.erase(name);
    for (int i = 0; i < 400 && !left.empty(); ++i) {
      usleep(5000);
      std::set<std::string> now = ShmFiles(), stay;
      std::set_intersection(left.begin(), left.end(), now.begin(), now.end(), std::inserter(stay, stay.end()));
      left.swap(stay);
    }
    return left;
  }

  static std::set<std::string> ShmFiles() {
    std::set<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator("/dev/shm")) {
      std::string name = entry.path().filename();
      if (name.rfind("hf3fs-iov-", 0) == 0) names.insert(name);
    }
    return names;
  }

  // A file of `size` bytes that has only these ranges of each block, ByteAt, and holes between them.
  static void WriteSparse(const std::string& path, uint64_t size, uint64_t block,
                          const std::vector<std::pair<uint64_t, uint64_t>>& ranges) {
    int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    ASSERT_GE(fd, 0);
    ASSERT_EQ(ftruncate(fd, static_cast<off_t>(size)), 0);
    for (uint64_t from = 0; from < size; from += block) {
      for (auto [begin, end] : ranges) {
        const Bytes bytes = BytesAt(from + begin, std::min(from + end, size) - std::min(from + begin, size));
        ssize_t written = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(from + begin));
        ASSERT_EQ(written, static_cast<ssize_t>(bytes.size()));
      }
    }
    close(fd);
  }

  // One file, and the tensors that shall be loaded from it.
  struct Source {
    std::string path;
    std::vector<std::pair<uint64_t, uint64_t>> ranges;  // offset, length
  };
  // A file whose tensors lie in it without gaps after an odd first byte.
  Source Write(const std::string& name, const std::vector<uint64_t>& lengths) {
    uint64_t at = 9;
    Source source;
    for (uint64_t length : lengths) {
      source.ranges.emplace_back(at, length);
      at += length;
    }
    source.path = WriteFile(name, at);
    return source;
  }

  // All tensors of all files, 256-aligned in one allocation a file.
  static Plan PlanOf(const std::vector<Source>& sources) {
    Plan plan;
    for (const Source& source : sources) {
      uint32_t file = static_cast<uint32_t>(plan.files.size());
      PlanFile planned;
      planned.path = source.path;
      int fd = open(source.path.c_str(), O_RDONLY | O_CLOEXEC);
      EXPECT_TRUE(FileIdentity::Of(fd, source.path, &planned.expected).ok());
      close(fd);
      plan.files.push_back(planned);
      uint64_t size = 0;
      for (auto [offset, length] : source.ranges) {
        plan.items.push_back({file, file, offset, length, size});
        size += (length + 255) / 256 * 256;
      }
      plan.allocations.push_back({size, 0});
    }
    EXPECT_TRUE(plan.Validate().ok());
    return plan;
  }

  // An engine over the mount. Closed, and waited for, when it goes.
  struct Loader {
    Loader(UsrbioReaderTest* test, UsrbioReaderOptions options = {}, const char* device_name = "cpu",
           int stall_ms = 60000) {
      if (options.mount_point.empty()) options.mount_point = test->mount;
      Status opened = OpenDevice(device_name, false, &device);
      EXPECT_TRUE(opened.ok()) << opened.message();
      EngineOptions engine_options;
      engine_options.stall_timeout = std::chrono::milliseconds(stall_ms);
      Status created = Engine::Create(device, NewUsrbioReader(options), engine_options, &engine);
      EXPECT_TRUE(created.ok()) << created.message();
    }
    ~Loader() { Close(); }
    void Close() {
      if (engine == nullptr) return;
      std::mutex mutex;
      std::condition_variable wake;
      bool closed = false;
      engine->Close([&] {
        std::lock_guard<std::mutex> lock(mutex);
        closed = true;
        wake.notify_all();
      });
      std::unique_lock<std::mutex> lock(mutex);
      EXPECT_TRUE(wake.wait_for(lock, std::chrono::seconds(60), [&] { return closed; })) << "close() hangs";
      engine.reset();
    }

    // Runs a load to its end.
    Status Load(const Plan& plan) {
      struct News {
        std::mutex mutex;
        std::condition_variable wake;
      };
      auto news = std::make_shared<News>();
      TransferOptions options;
      options.notify = [news] {
        std::lock_guard<std::mutex> lock(news->mutex);
        news->wake.notify_all();
      };
      Status started = engine->Start(plan, options, &transfer);
      if (!started.ok()) return started;
      std::unique_lock<std::mutex> lock(news->mutex);
      bool ended = news->wake.wait_for(lock, std::chrono::seconds(60), [this] { return transfer->drained(); });
      EXPECT_TRUE(ended) << "the load hangs";
      return transfer->status();
    }

    // Every loaded tensor is the file's bytes: ByteAt, except in holes, which are zeros.
    void ExpectBytes(const std::vector<Source>& sources, const std::function<bool(uint64_t)>& in_hole = nullptr) {
      bool right = true;
      for (uint32_t file = 0; file < sources.size(); ++file) {
        auto buffer = transfer->TakeAllocation(file);
        uint64_t at = 0;
        for (auto [offset, length] : sources[file].ranges) {
          Bytes bytes(length);
          if (length > 0) {
            ASSERT_NE(buffer, nullptr);
            ASSERT_TRUE(device->Read(*buffer, at, length, bytes.data()).ok());
          }
          Bytes expected = BytesAt(offset, length);
          for (uint64_t i = 0; in_hole && i < length; ++i)
            if (in_hole(offset + i)) expected[i] = 0;
          right = right && bytes == expected;
          at += (length + 255) / 256 * 256;
        }
      }
      EXPECT_TRUE(right);
    }

    std::shared_ptr<Device> device;
    std::shared_ptr<Engine> engine;
    std::shared_ptr<Transfer> transfer;
  };

  std::set<std::string> shm_before_ = ShmFiles();
};

}  // namespace fst
