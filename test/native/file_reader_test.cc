// The file reader by itself: scattering, short files, changed files, what is no file, and the ways to ask the kernel.
#include "reader/file_reader.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "base/file_system.h"
#include "base/metrics.h"
#include "device/host_device.h"
#include "reader/open_file.h"
#include "support/model.h"

namespace fst {
namespace {

std::string RandomBytes(size_t size) {
  Random random(size);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

class FileReaderTest : public ::testing::Test {
 protected:
  void Make(FileReaderOptions options) {
    reader_ = NewFileReader(options);
    queue_ = std::make_shared<CompletionQueue>();
    ASSERT_TRUE(reader_->Start(queue_, nullptr).ok());
  }
  void TearDown() override {
    reader_.reset();
    EXPECT_EQ(Metrics::Get().open_files, 0);
  }

  std::shared_ptr<ReaderFile> Opened(const std::string& path) {
    std::shared_ptr<ReaderFile> file;
    Status status = reader_->Open(path, IdentityOf(path), &file);
    EXPECT_TRUE(status.ok()) << status.message();
    return file;
  }
  Status Wait() {
    std::vector<Completion> completions;
    while (completions.empty()) queue_->Take(&completions, Clock::time_point::max());
    EXPECT_EQ(completions.size(), 1U);
    EXPECT_EQ(completions[0].kind, Completion::Kind::kRead);
    EXPECT_EQ(completions[0].tag, 77U);
    return completions[0].status;
  }
  Status Read(ReadRequest request) {
    Status submitted = reader_->Submit(std::move(request), 77);
    EXPECT_TRUE(submitted.ok()) << submitted.message();
    return Wait();
  }
  static ReadRequest Whole(std::shared_ptr<ReaderFile> file, uint64_t offset, std::string* into) {
    ReadRequest request;
    request.file = std::move(file);
    request.offset = offset;
    request.length = request.required = into->size();
    request.pieces.push_back({reinterpret_cast<uint64_t>(into->data()), into->size(), 0});
    return request;
  }

  TempFolder folder_;
  std::unique_ptr<Reader> reader_;
  std::shared_ptr<CompletionQueue> queue_;
};

TEST_F(FileReaderTest, ScattersOverAsManyPiecesAsTheContractAllows) {
  Make({});
  ASSERT_TRUE(reader_->needs().scatters);
  std::string bytes = RandomBytes(1024 * 97), into(1024 * 100, '\0');
  ReadRequest request;
  request.file = Opened(folder_.Write("m", bytes));
  request.length = request.required = bytes.size();
  request.last = true;
  for (size_t i = 0; i < 1024; ++i)  // backwards in memory, with holes
    request.pieces.push_back({reinterpret_cast<uint64_t>(into.data()) + (1023 - i) * 100, 97, 0});
  ASSERT_TRUE(Read(std::move(request)).ok());
  for (size_t i = 0; i < 1024; ++i) {
    EXPECT_EQ(into.compare((1023 - i) * 100, 97, bytes, i * 97, 97), 0) << "piece " << i;
    EXPECT_EQ(into.compare((1023 - i) * 100 + 97, 3, std::string(3, '\0')), 0) << "beyond piece " << i;
  }
}

TEST_F(FileReaderTest, SkipsHolesOfAllSizesAndPicksRuns) {
  Make({});
  ASSERT_TRUE(reader_->needs().skips);
  const std::string bytes = RandomBytes(8 << 20);
  auto file = Opened(folder_.Write("m", bytes));
  const std::vector<size_t> holes = {0, 1, 100, 4095, 4096, 70000}, runs = {1, 32, 64, 128, 1000, 16384, 200000};
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    const auto one_of = [&](const std::vector<size_t>& sizes) { return sizes[Below(random, sizes.size())]; };
    const std::vector<size_t> few = {one_of(holes), one_of(holes), one_of(runs), one_of(runs)};
    ReadRequest request;
    request.file = file;
    request.offset = Below(random, 10000);
    size_t in_memory = 0;
    std::string expected;
    while (request.pieces.size() < 300) {
      const size_t hole = request.pieces.empty() ? 0 : few[Below(random, 2)], run = few[2 + Below(random, 2)];
      const size_t stride = run + few[Below(random, 2)];
      const size_t count = std::min(1 + Below(random, 4) * Below(random, 100), bytes.size() / 4 / stride);
      ReadPiece piece{in_memory, run, 0, hole};
      if (count > 1 && stride > run && stride - run < reader_->needs().picks_holes) {
        piece.runs = count;
        piece.stride = stride;
        piece.length = count * run;
      }
      const size_t begin = request.offset + request.length + hole;
      if (begin + piece.file_length() > bytes.size()) break;
      for (size_t i = 0; i < piece.runs; ++i) expected += bytes.substr(begin + i * piece.stride, run);
      in_memory += piece.length;
      request.length += hole + piece.file_length();
      request.pieces.push_back(piece);
    }
    const size_t beyond = Below(random, request.pieces.back().run());
    request.required = request.length - beyond;
    std::string into(in_memory, '\0');
    for (ReadPiece& piece : request.pieces) piece.address += reinterpret_cast<uint64_t>(into.data());
    ASSERT_TRUE(Read(std::move(request)).ok());
    into.resize(in_memory - beyond);  // what is read beyond is of no interest
    expected.resize(in_memory - beyond);
    EXPECT_TRUE(into == expected) << "seed " << seed;
  }
}

TEST_F(FileReaderTest, PicksManyRunsIntoMemoryOfAnyAlignment) {
  Make({});
  const std::string bytes = RandomBytes(1500000);
  auto file = Opened(folder_.Write("m", bytes));
  for (size_t run : {16, 24, 64, 1000, 1024}) {
    for (size_t at : {0, 8, 16, 17}) {
      SCOPED_TRACE(std::to_string(run) + " bytes, at " + std::to_string(at));
      const size_t stride = run * 3, runs = 1400000 / stride;
      std::string into(runs * run + 64, '.');
      const size_t aligned = (64 - reinterpret_cast<uint64_t>(into.data()) % 64) % 32 + at;
      ReadRequest request = Whole(file, 77, &into);
      request.pieces = {{reinterpret_cast<uint64_t>(into.data()) + aligned, runs * run, 0, 0, runs, stride}};
      request.length = request.required = (runs - 1) * stride + run;
      ASSERT_TRUE(Read(std::move(request)).ok());
      std::string expected(into.size(), '.');
      for (size_t i = 0; i < runs; ++i) expected.replace(aligned + i * run, run, bytes, 77 + i * stride, run);
      EXPECT_TRUE(into == expected);
    }
  }
}

TEST_F(FileReaderTest, TellsOfBytesOutOfMemoryAsTheyArrive) {
  Make({});
  const std::string bytes = RandomBytes(1 << 20);
  auto file = Opened(folder_.Write("m", bytes));
  std::string into(bytes.size(), '\0');
  ReadRequest request = Whole(file, 100, &into);
  request.length = request.required = 900000;
  request.pieces = {};
  for (size_t at = 0; at < request.length; at += 45000)
    request.pieces.push_back({reinterpret_cast<uint64_t>(into.data()) + at, 45000, 0});
  std::vector<size_t> told;
  request.on_arrival = [&](size_t arrived) {
    EXPECT_EQ(into.compare(0, arrived, bytes, 100, arrived), 0);
    told.push_back(arrived);
  };
  ASSERT_TRUE(Read(request).ok());
  EXPECT_EQ(told, (std::vector<size_t>{262144, 524288, 786432, 900000}));

  told.clear();
  request.pieces.back().skip = 5;
  request.length = request.required = 900005;
  ASSERT_TRUE(Read(request).ok());
  EXPECT_TRUE(told.empty()) << "what skips is not told of";

  told.clear();
  into.assign(bytes.size(), '\0');
  request = Whole(file, 0, &into);
  request.on_arrival = [&](size_t arrived) {
    told.push_back(arrived);
    if (told.size() == 2) {
      EXPECT_EQ(truncate(file->path().c_str(), 600000), 0);
    }
  };
  EXPECT_EQ(Read(std::move(request)).code(), Code::FILE_CHANGED);
  EXPECT_EQ(told.back(), 524288U) << "nothing that did not arrive";
}

TEST_F(FileReaderTest, AFileThatEndsAmongRunsIsNeverData) {
  Make({});
  for (off_t size : {0, 100, 1500, 2099}) {
    const std::string path = folder_.Write("m", RandomBytes(2100));
    auto file = Opened(path);
    ASSERT_EQ(truncate(path.c_str(), size), 0);
    std::string into(300, '\0');
    const auto address = reinterpret_cast<uint64_t>(into.data());
    ReadRequest request;
    request.file = file;
    request.pieces = {{address, 300, 0, 0, 3, 1000}};
    request.length = request.required = 2100;
    EXPECT_EQ(Read(std::move(request)).code(), Code::FILE_CHANGED) << size;
  }
}

TEST_F(FileReaderTest, ReadsFromTheMiddle) {
  Make({});
  std::string bytes = RandomBytes(10000), into(1234, '\0');
  ASSERT_TRUE(Read(Whole(Opened(folder_.Write("m", bytes)), 4321, &into)).ok());
  EXPECT_EQ(into, bytes.substr(4321, 1234));
}

// Signals interrupt system calls of threads that do not block them; the reader's do, and would try again if not.
TEST_F(FileReaderTest, SignalsDoNotShortenReads) {
  struct sigaction action = {}, before;
  action.sa_handler = [](int) {};
  ASSERT_EQ(sigaction(SIGUSR1, &action, &before), 0);
  Make({});
  std::string bytes = RandomBytes(8 << 20), into(8 << 20, '\0');
  auto file = Opened(folder_.Write("m", bytes));
  std::atomic<bool> done{false};
  std::thread storm([&] {
    while (!done) {
      kill(getpid(), SIGUSR1);
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
  });
  for (int i = 0; i < 10; ++i) {
    std::fill(into.begin(), into.end(), '\0');
    Status status = Read(Whole(file, 0, &into));
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_TRUE(into == bytes);
  }
  done = true;
  storm.join();
  sigaction(SIGUSR1, &before, nullptr);
}

TEST_F(FileReaderTest, AFileThatShrankOrGrewHasChanged) {
  for (off_t size : {0, 5000, 9999, 10001}) {
    for (bool direct : {false, true}) {
      FileReaderOptions options;
      options.direct = direct;
      Make(options);
      std::string path = folder_.Write("m", RandomBytes(10000));
      void* memory = nullptr;
      ASSERT_EQ(posix_memalign(&memory, 4096, 12288), 0);
      ReadRequest request;
      request.file = Opened(path);
      request.length = direct ? 12288 : 10000;
      request.required = 10000;
      request.pieces.push_back({reinterpret_cast<uint64_t>(memory), request.length, 0});
      ASSERT_EQ(truncate(path.c_str(), size), 0);
      Status status = Read(std::move(request));
      EXPECT_EQ(status.code(), Code::FILE_CHANGED) << status.message();
      EXPECT_EQ(status.path(), path);
      free(memory);
    }
  }
}

// The header promises more than there is, and nothing has changed since.
TEST_F(FileReaderTest, AFileThatEndsEarlyIsNeverData) {
  Make({});
  std::string path = folder_.Write("m", RandomBytes(1000)), into(1500, '\0');
  Status status = Read(Whole(Opened(path), 0, &into));
  EXPECT_EQ(status.code(), Code::UNEXPECTED_EOF);
  EXPECT_EQ(status.path(), path);
  EXPECT_EQ(status.offset(), 1000);
  EXPECT_NE(status.message().find("1500"), std::string::npos) << status.message();
}

TEST_F(FileReaderTest, AnotherFileUnderTheNameHasChanged) {
  Make({});
  std::string path = folder_.Write("m", "first");
  FileIdentity expected = IdentityOf(path);
  std::string other = folder_.Write("other", "other");
  ASSERT_EQ(rename(other.c_str(), path.c_str()), 0);
  std::shared_ptr<ReaderFile> file;
  Status status = reader_->Open(path, expected, &file);
  EXPECT_EQ(status.code(), Code::FILE_CHANGED);
  EXPECT_NE(status.message().find("replaced"), std::string::npos) << status.message();
  EXPECT_EQ(file, nullptr);
}

TEST_F(FileReaderTest, WhatIsNoFileIsRefusedAtOnce) {
  for (bool direct : {false, true}) {
    FileReaderOptions options;
    options.direct = direct;
    Make(options);
    std::string fifo = folder_.Path("fifo" + std::to_string(direct));
    ASSERT_EQ(mkfifo(fifo.c_str(), 0600), 0);
    // Nobody writes the pipe: a blocking open would hang here.
    for (const std::string& path : {fifo, folder_.Path(""), std::string("/dev/zero"), folder_.Path("absent")}) {
      std::shared_ptr<ReaderFile> file;
      Status status = reader_->Open(path, FileIdentity(), &file);
      EXPECT_EQ(status.code(), Code::IO_ERROR) << path << ": " << status.message();
      EXPECT_EQ(status.path(), path);
      EXPECT_EQ(file, nullptr);
    }
    EXPECT_TRUE(reader_->TakeFallbacks().empty());
  }
}

TEST_F(FileReaderTest, ReadsDirectlyByThreadsWhereThereIsNoRing) {
  static int calls, error;
  calls = 0;
  for (int refused : {EPERM, ENOSYS, EMFILE, 0}) {
    error = refused;
    FileReaderOptions options;
    options.direct = true;
    options.ring_setup = [](unsigned, void*) {
      ++calls;
      errno = error;
      return error != 0 ? -1 : memfd_create("no ring", MFD_CLOEXEC);
    };
    Make(options);
    const std::string bytes = RandomBytes(12288);
    auto file = Opened(folder_.Write("m", bytes));
    FileSystemTraits traits;
    ASSERT_EQ(FileSystemOf(static_cast<const FdFile&>(*file).fd(), &traits), 0);
    void* memory = nullptr;
    ASSERT_EQ(posix_memalign(&memory, 4096, 12288), 0);
    for (int i = 0; i < 3; ++i) {
      ReadRequest request;
      request.file = file;
      request.length = request.required = 12288;
      request.pieces.push_back({reinterpret_cast<uint64_t>(memory), 12288, 0});
      EXPECT_TRUE(Read(std::move(request)).ok());
      EXPECT_EQ(std::string(static_cast<char*>(memory), 12288), bytes);
    }
    free(memory);
    file.reset();
    const auto fallbacks = reader_->TakeFallbacks();
    if (!traits.on_disk) {
      EXPECT_EQ(calls, 0) << "a ring for what is no disk of this machine";
      continue;
    }
    ASSERT_EQ(fallbacks.size(), 1U) << "once";
    EXPECT_EQ(fallbacks[0].path, "");
    if (refused != 0) {
      EXPECT_EQ(fallbacks[0].reason, ErrnoText(refused));
    }
  }
}

TEST_F(FileReaderTest, SaysWhenTheLimitOfOpenFilesIsReached) {
  Make({});
  std::string path = folder_.Write("m", "x");
  FileIdentity expected = IdentityOf(path);
  rlimit before, none;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  none = before;
  none.rlim_cur = 0;
  std::shared_ptr<ReaderFile> file;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  Status status = reader_->Open(path, expected, &file);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
  EXPECT_EQ(status.code(), Code::IO_ERROR);
  EXPECT_NE(status.message().find("ulimit -n"), std::string::npos) << status.message();
}

TEST_F(FileReaderTest, DirectReadsArriveInAlignedMemory) {
  FileReaderOptions options;
  options.direct = true;
  options.chunk = 10000;
  Make(options);
  EXPECT_EQ(reader_->needs().offset_alignment, 4096U);
  EXPECT_EQ(reader_->needs().chunk, 8192U);
  EXPECT_FALSE(reader_->needs().fills_host);
  std::string bytes = RandomBytes(10000);
  void* memory = nullptr;
  ASSERT_EQ(posix_memalign(&memory, 4096, 8192), 0);
  ReadRequest request;
  request.file = Opened(folder_.Write("m", bytes));
  request.offset = 4096;
  request.length = 8192;  // past the end of the file
  request.required = 10000 - 4096;
  request.pieces.push_back({reinterpret_cast<uint64_t>(memory), 8192, 0});
  ASSERT_TRUE(Read(std::move(request)).ok());
  EXPECT_EQ(std::string(static_cast<char*>(memory), 10000 - 4096), bytes.substr(4096));
  free(memory);
}

// A file system without O_DIRECT is read buffered, and that is said. Files of the kernel itself have none.
TEST_F(FileReaderTest, FallsBackWhereDirectReadsAreRefused) {
  std::string path = "/proc/self/status";
  int fd = open(path.c_str(), O_RDONLY | O_DIRECT | O_CLOEXEC);
  if (fd >= 0) close(fd);
  ASSERT_LT(fd, 0) << "this kernel opens " << path << " with O_DIRECT: the test needs another file";
  FileReaderOptions options;
  options.direct = true;
  Make(options);
  FileIdentity expected = IdentityOf(path), now = IdentityOf(path);
  if (expected != now) GTEST_SKIP() << path << " changes its identity by itself here";
  std::shared_ptr<ReaderFile> file;
  Status status = reader_->Open(path, expected, &file);
  ASSERT_TRUE(status.ok()) << status.message();
  auto fallbacks = reader_->TakeFallbacks();
  ASSERT_EQ(fallbacks.size(), 1U);
  EXPECT_EQ(fallbacks[0].path, path);
  EXPECT_EQ(fallbacks[0].from, "direct");
  EXPECT_EQ(fallbacks[0].to, "buffered");
  EXPECT_TRUE(reader_->TakeFallbacks().empty());

  // A file that has changed is no reason to read in another way, whatever errno was left behind.
  expected.ino += 1;
  errno = EINVAL;
  std::string plain = folder_.Write("m", "x");
  EXPECT_EQ(reader_->Open(plain, expected, &file).code(), Code::FILE_CHANGED);
  EXPECT_TRUE(reader_->TakeFallbacks().empty());
}

TEST_F(FileReaderTest, DropsTheCacheAfterTheLastRead) {
  std::string bytes = RandomBytes(1 << 20), into(1 << 20, '\0');
  std::string path = folder_.Write("m", bytes);
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(fsync(fd), 0);  // dirty pages stay
  void* view = mmap(nullptr, 1 << 20, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(view, MAP_FAILED);
  auto cached = [&] {
    unsigned char pages[256];
    EXPECT_EQ(mincore(view, 1 << 20, pages), 0);
    return (pages[128] & 1) != 0;
  };
  for (bool drop : {false, true}) {
    FileReaderOptions options;
    options.drop_cache = drop;
    Make(options);
    auto file = Opened(path);
    for (bool last : {false, true}) {
      ReadRequest request = Whole(file, 0, &into);
      request.last = last;
      ASSERT_TRUE(Read(std::move(request)).ok());
      EXPECT_EQ(into, bytes);
      if (!drop || !last) {
        EXPECT_TRUE(cached());
      }
    }
    if (drop) {
      EXPECT_FALSE(cached());
    }
  }
  munmap(view, 1 << 20);
  close(fd);
}

// Every thread works, and the file closes before its last completion is seen.
TEST_F(FileReaderTest, ManyReadsAtATime) {
  FileReaderOptions options;
  options.threads = 4;
  Make(options);
  std::string bytes = RandomBytes(1 << 20), into(1 << 20, '\0');
  auto file = Opened(folder_.Write("m", bytes));
  for (size_t i = 0; i < 256; ++i) {
    ReadRequest request;
    request.file = file;
    request.offset = i * 4096;
    request.length = request.required = 4096;
    request.last = i == 255;
    request.pieces.push_back({reinterpret_cast<uint64_t>(into.data()) + i * 4096, 4096, 0});
    ASSERT_TRUE(reader_->Submit(std::move(request), i).ok());
  }
  file.reset();
  std::vector<Completion> completions;
  size_t done = 0;
  std::vector<bool> seen(256);
  while (done < 256) {
    queue_->Take(&completions, Clock::time_point::max());
    for (Completion& completion : completions) {
      EXPECT_TRUE(completion.status.ok());
      EXPECT_FALSE(seen[completion.tag]);
      seen[completion.tag] = true;
      ++done;
    }
  }
  EXPECT_EQ(into, bytes);
  EXPECT_EQ(Metrics::Get().open_files, 0);
}

}  // namespace
}  // namespace fst
