// A folder that acts as a 3FS mount, the emulator of the client library, and a small client for tests.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/shared_library.h"
#include "emulators/hf3fs/client_api.h"

namespace fst {

class Hf3fsEmulatorTest : public ::testing::Test {
 protected:
  static constexpr char kFolderVariable[] = "FST_TEST_HF3FS_FOLDER";
  static constexpr char kLibraryVariable[] = "FASTSAFETENSORS_3FS_LIB";
  static constexpr uint8_t kPoison = 0xA5;

  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    // A death test's child works in its parent's folder: it cannot remove one of its own.
    const char* inherited = getenv(kFolderVariable);
    owner_ = inherited == nullptr;
    if (owner_) {
      std::string name = ::testing::TempDir() + "/fst-hf3fs-XXXXXX";
      ASSERT_NE(mkdtemp(name.data()), nullptr);
      mount = std::filesystem::canonical(name).string();
      setenv(kFolderVariable, mount.c_str(), 1);
    } else {
      mount = inherited;
    }
    std::filesystem::create_directories(mount + "/3fs-virt/iovs");
    const char* configured = getenv(kLibraryVariable);
    library_before_ = configured == nullptr ? "" : configured;
    setenv(kLibraryVariable, FST_BINARY_DIR "/emulators/libhf3fs_api_shared.so", 1);
    Status loaded = usrbio::LoadClient(&api);
    ASSERT_TRUE(loaded.ok()) << loaded.message();
    ASSERT_TRUE(SharedLibrary::Open(api->library, &library_).ok());
    Call<void()>("fst_emu_hf3fs_reset")();
  }

  void TearDown() override {
    library_before_.empty() ? unsetenv(kLibraryVariable) : setenv(kLibraryVariable, library_before_.c_str(), 1);
    if (api == nullptr) return;
    Call<void()>("fst_emu_hf3fs_reset")();
    EXPECT_EQ(Stat("rings"), 0u);
    EXPECT_EQ(Stat("iovs"), 0u);
    EXPECT_EQ(Stat("fds"), 0u);
    EXPECT_EQ(Stat("in_flight"), 0u);
    EXPECT_TRUE(std::filesystem::is_empty(mount + "/3fs-virt/iovs"));
    if (!owner_) return;
    unsetenv(kFolderVariable);
    std::filesystem::remove_all(mount);
  }

  template <typename F>
  F* Call(const char* symbol) {
    auto function = reinterpret_cast<F*>(library_.Find(symbol));
    EXPECT_NE(function, nullptr) << symbol;
    return function;
  }
  void Set(const char* name, const std::string& value) {
    EXPECT_EQ(Call<int(const char*, const char*)>("fst_emu_hf3fs_set")(name, value.c_str()), 0) << name << "=" << value;
  }
  uint64_t Stat(const char* name) { return Call<uint64_t(const char*)>("fst_emu_hf3fs_stat")(name); }

  // The byte at `offset` of every test file: never the poison, and different in neighbouring blocks.
  static uint8_t ByteAt(uint64_t offset) { return static_cast<uint8_t>((offset * 131 + (offset >> 12)) % 160); }

  // Those from `offset` on. By copies of what repeats: sanitizers look at each access.
  static std::vector<uint8_t> BytesAt(uint64_t offset, size_t length) {
    constexpr uint64_t kPeriod = uint64_t{160} << 12;
    static const std::vector<uint8_t> period = [] {
      std::vector<uint8_t> bytes(kPeriod);
      for (uint64_t i = 0; i < kPeriod; ++i) bytes[i] = ByteAt(i);
      return bytes;
    }();
    std::vector<uint8_t> bytes(length);
    for (uint64_t done = 0; done < length;) {
      const uint64_t from = (offset + done) % kPeriod, some = std::min<uint64_t>(length - done, kPeriod - from);
      memcpy(bytes.data() + done, period.data() + from, some);
      done += some;
    }
    return bytes;
  }

  std::string WriteFile(const std::string& name, size_t size) {
    std::string path = mount + "/" + name;
    const std::vector<uint8_t> bytes = BytesAt(0, size);
    FILE* file = fopen(path.c_str(), "wb");
    EXPECT_NE(file, nullptr);
    EXPECT_EQ(fwrite(bytes.data(), 1, size, file), size);
    fclose(file);
    return path;
  }

  static timespec In(double seconds) {
    timespec t;
    clock_gettime(CLOCK_REALTIME, &t);
    int64_t ns = t.tv_nsec + static_cast<int64_t>(seconds * 1e9);
    t.tv_sec += ns / 1000000000;
    t.tv_nsec = ns % 1000000000;
    return t;
  }

  std::string mount;
  std::unique_ptr<const usrbio::ClientApi> api;

 private:
  SharedLibrary library_;
  std::string library_before_;
  bool owner_ = false;

 protected:
  // A ring, an iov, and one registered file of `file_size` bytes; what the destructor finds still there it removes.
  struct Client {
    Client(Hf3fsEmulatorTest* test, int entries = 8, int depth = -1, size_t file_size = 1 << 20, size_t block = 0)
        : t(test), api(test->api.get()) {
      path = t->WriteFile("data", file_size);
      fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
      EXPECT_GE(fd, 0);
      EXPECT_LE(api->reg_fd(fd, 0), 0);
      EXPECT_EQ(api->iovcreate(&iov, t->mount.c_str(), 1 << 20, block, -1), 0);
      EXPECT_EQ(api->iorcreate4(&ring, t->mount.c_str(), entries, true, depth, 0, -1, 0), 0);
    }
    ~Client() {
      api->iordestroy(&ring);
      if (iov.handle != nullptr) api->iovdestroy(&iov);
      if (fd < 0) return;
      api->dereg_fd(fd);
      close(fd);
    }
    int Prep(size_t at, uint64_t offset, uint64_t length, uintptr_t tag = 0) {
      return api->prep_io(&ring, &iov, true, iov.base + at, fd, offset, length, reinterpret_cast<void*>(tag));
    }
    // Waits for `count` completions; tag -> result.
    std::map<uintptr_t, int64_t> Wait(int count, double seconds = 60) {
      std::map<uintptr_t, int64_t> results;
      std::vector<usrbio::Cqe> cqes(static_cast<size_t>(count));
      timespec deadline = In(seconds);
      int n = api->wait_for_ios(&ring, cqes.data(), count, count, &deadline);
      for (int i = 0; i < n; i++) {
        order.push_back(reinterpret_cast<uintptr_t>(cqes[static_cast<size_t>(i)].userdata));
        results[order.back()] = cqes[static_cast<size_t>(i)].result;
      }
      return results;
    }
    int64_t Read(size_t at, uint64_t offset, uint64_t length) {
      EXPECT_GE(Prep(at, offset, length, 1), 0);
      EXPECT_EQ(api->submit_ios(&ring), 0);
      auto results = Wait(1);
      return results.count(1) ? results[1] : -9999;
    }
    // The iov's bytes at `at` are the file's at `offset`.
    void ExpectFile(size_t at, uint64_t offset, size_t length) {
      EXPECT_EQ(memcmp(iov.base + at, BytesAt(offset, length).data(), length), 0) << length << " bytes";
    }
    void ExpectAll(uint8_t value, size_t at, size_t length) {
      size_t wrong = 0;
      for (size_t i = 0; i < length; i++) wrong += iov.base[at + i] != value;
      EXPECT_EQ(wrong, 0u) << "of " << length;
    }

    Hf3fsEmulatorTest* t;
    const usrbio::ClientApi* api;
    std::string path;
    int fd = -1;
    usrbio::Iov iov = {};
    usrbio::Ior ring = {};
    std::vector<uintptr_t> order;  // tags as they completed
  };

  // An own piece of /dev/shm, linked and wrapped as a reader does it.
  struct OwnIov {
    OwnIov(Hf3fsEmulatorTest* test, size_t size, size_t block = 0) : size(size) {
      uint8_t id[16];
      EXPECT_EQ(getrandom(id, sizeof id, 0), 16);
      std::string hex;
      for (int i = 0; i < 16; i++) {
        char byte[4];
        snprintf(byte, sizeof byte, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", id[i]);
        hex += byte;
      }
      name = "/hf3fs-iov-" + hex;
      fd = shm_open(name.c_str(), O_RDWR | O_CREAT | O_EXCL, 0600);
      EXPECT_EQ(posix_fallocate(fd, 0, static_cast<off_t>(size)), 0);
      base = static_cast<uint8_t*>(mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0));
      link = test->mount + "/3fs-virt/iovs/" + hex + (block ? ".b" + std::to_string(block) : "");
      EXPECT_EQ(symlink(("/dev/shm" + name).c_str(), link.c_str()), 0);
      shm_unlink(name.c_str());
      EXPECT_EQ(test->api->iovwrap(&iov, base, id, test->mount.c_str(), size, block, -1), 0);
    }
    ~OwnIov() {
      unlink(link.c_str());
      munmap(base, size);
      close(fd);
    }
    size_t size;
    int fd = -1;
    std::string name, link;
    uint8_t* base = nullptr;
    usrbio::Iov iov = {};
  };
};

// The emulator ends the process with a line that gives the reason.
using Hf3fsStrictDeathTest = Hf3fsEmulatorTest;
#define EXPECT_MISUSE(statements, reason) EXPECT_DEATH(statements, "hf3fs emulator: .*" reason)

}  // namespace fst
