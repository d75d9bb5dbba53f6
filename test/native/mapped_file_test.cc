// Loads of mapped files: tensors are views, which keep their bytes whatever becomes of the file; what cannot be mapped
// says why; nothing is held afterwards.
#include "reader/mapped_file.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <fstream>
#include <thread>
#include <vector>

#include "base/mapped_pages.h"
#include "base/warnings.h"
#include "device/host_device.h"
#include "device/host_memory.h"
#include "reader/file_reader.h"
#include "support/engine_harness.h"

namespace fst {
namespace {

class MappedFileTest : public EngineTest {
 protected:
  void SetUp() override {
    if (!PopulatesMappings()) GTEST_SKIP() << "this kernel has no MADV_POPULATE_READ (Linux 5.14)";
  }
  void TearDown() override {
    EXPECT_TRUE(Eventually([] { return Metrics::Get().mapped_bytes == 0; })) << Metrics::Get().mapped_bytes;
    EngineTest::TearDown();
  }

  // A plan with one mapped allocation a file, which are batches where files are not interleaved.
  Model Mapped(ModelShape shape, uint64_t seed = 1) {
    shape.strided = 0;  // runs with holes between them are read
    const bool batches = shape.order == ModelShape::Order::kFiles;
    Model model = Written(shape, seed);
    Plan& plan = model.plan;
    plan.allocations.clear();
    for (uint32_t file = 0; file < plan.files.size(); ++file)
      plan.allocations.push_back({plan.files[file].expected.size, batches ? file : 0, file, 0});
    for (PlanItem& item : plan.items) {
      item.allocation = item.file;
      item.destination = item.offset;
    }
    EXPECT_TRUE(plan.Validate().ok());
    return model;
  }

  static std::shared_ptr<MappedFile> Map(const PlanFile& file, bool insist = false) {
    std::shared_ptr<MappedFile> mapped;
    std::string why;
    Status status = MappedFile::Open(file.path, file.expected, {insist}, &mapped, &why);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_NE(mapped, nullptr) << why;
    return mapped;
  }
  static std::string WhyNot(const PlanFile& file, bool insist = false) {
    std::shared_ptr<MappedFile> mapped;
    std::string why;
    Status status = MappedFile::Open(file.path, file.expected, {insist}, &mapped, &why);
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(mapped, nullptr);
    return why;
  }
  TransferOptions OptionsFor(const Model& model) {
    TransferOptions options;
    for (const PlanFile& file : model.plan.files) options.mapped.push_back(Map(file));
    return options;
  }
  std::shared_ptr<Engine> OpenOnHost(EngineOptions options = {}) {
    return Open(std::make_shared<HostDevice>(), NewFileReader({}), options);
  }
  static bool Same(const DeviceBuffer& buffer, const std::string& bytes) {
    return memcmp(reinterpret_cast<const char*>(buffer.address()), bytes.data(), buffer.size()) == 0;
  }
};

TEST_F(MappedFileTest, LoadsAreViewsOfTheFile) {
  for (auto order : {ModelShape::Order::kFiles, ModelShape::Order::kInterleaved}) {
    ModelShape shape;
    shape.max_length = 3 << 20;
    shape.order = order;
    Model model = Mapped(shape);
    auto engine = OpenOnHost();
    auto watch = Watch::Begin(*engine, model, OptionsFor(model));
    watch->ExpectComplete();
    EXPECT_EQ(Metrics::Get().host_bytes, 0);
    EXPECT_GT(Metrics::Get().mapped_bytes, static_cast<int64_t>(model.Bytes()));
    CloseAndWait(*engine);
  }
}

TEST_F(MappedFileTest, OneFileIsMappedInPartAndCopiedInPart) {
  Model model = Mapped({});
  Plan& plan = model.plan;
  uint64_t used = 0;
  plan.allocations.push_back({0, 2});
  for (PlanAllocation& allocation : plan.allocations) allocation.batch = 0;
  for (size_t i = 0; i < plan.items.size(); i += 3) {
    plan.items[i].allocation = 3;
    plan.items[i].destination = used;
    used += (plan.items[i].length + 255) / 256 * 256;
  }
  plan.allocations[3].size = used;
  ASSERT_TRUE(plan.Validate().ok());
  auto engine = OpenOnHost();
  Watch::Begin(*engine, model, OptionsFor(model))->ExpectComplete();
  CloseAndWait(*engine);
}

TEST_F(MappedFileTest, PlansThatLieAreRefused) {
  Model model = Mapped({});
  Plan plan = model.plan;
  plan.items[0].destination += 1;
  EXPECT_EQ(plan.Validate().code(), Code::INVALID_ARGUMENT);
  plan = model.plan;
  plan.allocations[1].mapped_offset = 4096;
  EXPECT_EQ(plan.Validate().code(), Code::INVALID_ARGUMENT);
  plan = model.plan;
  plan.allocations[1].mapped = 9;
  EXPECT_EQ(plan.Validate().code(), Code::INVALID_ARGUMENT);
  auto engine = OpenOnHost();
  std::shared_ptr<Transfer> transfer;
  EXPECT_EQ(engine->Start(model.plan, {}, &transfer).code(), Code::INVALID_ARGUMENT);
  EngineOptions staged;
  staged.always_stage = true;
  EXPECT_FALSE(OpenOnHost(staged)->maps_files());
  EXPECT_EQ(OpenOnHost(staged)->Start(model.plan, OptionsFor(model), &transfer).code(), Code::INVALID_ARGUMENT);
  CloseAndWait(*engine);
}

TEST_F(MappedFileTest, OnlyWhatIsWantedIsMapped) {
  Model model = Mapped({});
  const PlanFile& file = model.plan.files[0];
  std::shared_ptr<MappedFile> mapped;
  std::string why;
  ASSERT_TRUE(MappedFile::Open(file.path, file.expected, {false, 4096, 8192}, &mapped, &why).ok());
  ASSERT_NE(mapped, nullptr) << why;
  EXPECT_TRUE(mapped->Covers(4096, 4096));
  EXPECT_FALSE(mapped->Covers(0, 4096));
  EXPECT_FALSE(mapped->Covers(4096, 1 << 20));
  auto buffer = mapped->BufferOf(std::make_shared<HostDevice>(), 4096, 4096);
  ASSERT_TRUE(mapped->Populate(4096, 4096).ok());
  EXPECT_TRUE(Same(*buffer, model.contents[0].substr(4096, 4096)));
  // A plan that has more of the file is none for it.
  TransferOptions options = OptionsFor(model);
  options.mapped[0] = mapped;
  std::shared_ptr<Transfer> transfer;
  auto engine = OpenOnHost();
  EXPECT_EQ(engine->Start(model.plan, std::move(options), &transfer).code(), Code::INVALID_ARGUMENT);
  CloseAndWait(*engine);
}

TEST_F(MappedFileTest, BytesStayWhenTheFileIsCutShort) {
  Model model = Mapped({});
  auto mapped = Map(model.plan.files[0]);
  const size_t size = model.contents[0].size();
  auto buffer = mapped->BufferOf(std::make_shared<HostDevice>(), 0, size);
  ASSERT_TRUE(mapped->Populate(0, size).ok());
  EXPECT_EQ(Metrics::Get().mapped_bytes, static_cast<int64_t>(size));
  ASSERT_EQ(truncate(model.plan.files[0].path.c_str(), 0), 0);
  EXPECT_TRUE(Same(*buffer, model.contents[0]));
  EXPECT_EQ(Metrics::Get().mapped_bytes, 0);
  EXPECT_EQ(Metrics::Get().host_bytes, static_cast<int64_t>(size));
  EXPECT_EQ(mapped->BufferOf(std::make_shared<HostDevice>(), 0, size), nullptr);
}

// What the event loop asks before it hands out views of a file that was mapped before.
TEST_F(MappedFileTest, SaysWhetherItIsCurrent) {
  Model model = Mapped({});
  const std::string& path = model.plan.files[0].path;
  auto mapped = Map(model.plan.files[0]);
  EXPECT_TRUE(mapped->IsCurrent(/*looks=*/true));
  EXPECT_TRUE(mapped->IsResident(0, model.contents[0].size()));
  ASSERT_EQ(rename(path.c_str(), (path + ".old").c_str()), 0);
  std::ofstream(path, std::ios::binary) << model.contents[0];
  EXPECT_FALSE(mapped->IsCurrent(/*looks=*/true));
  EXPECT_TRUE(mapped->IsCurrent(/*looks=*/false));
  UniqueFd writer(open((path + ".old").c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_FALSE(mapped->IsCurrent(/*looks=*/false));
}

// Bytes of this process's own that the mappings around an address have.
uint64_t OwnBytesAt(const DeviceBuffer& buffer) {
  std::ifstream maps("/proc/self/smaps");
  bool inside = false;
  uint64_t bytes = 0;
  for (std::string line; std::getline(maps, line);) {
    unsigned long long begin = 0, end = 0, kib = 0;
    char after = 0;
    if (sscanf(line.c_str(), "%llx-%llx%c", &begin, &end, &after) == 3 && after == ' ')
      inside = begin < buffer.address() + buffer.size() && end > buffer.address();
    if (inside && sscanf(line.c_str(), "Anonymous: %llu kB", &kib) == 1) bytes += kib << 10;
  }
  return bytes;
}

// Memory that was written to, or that has taken the place of a mapping, goes with its allocation.
TEST_F(MappedFileTest, WhatIsDroppedIsGivenBackThoughTheFileStays) {
  constexpr uint64_t kHalf = (4 << 20) + 100, kEnd = 8 << 20;
  TempFolder folder;
  const std::string path = folder.Path("file");
  std::ofstream(path, std::ios::binary) << std::string(kEnd, 'f');
  PlanFile file = {path, {}};
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_TRUE(FileIdentity::Of(fd.get(), path, &file.expected).ok());
  auto device = std::make_shared<HostDevice>();
  for (bool detached : {false, true}) {
    auto mapped = Map(file);
    auto all = mapped->BufferOf(device, 0, kEnd);  // for a look
    const uint64_t address = all->address();
    DeviceBuffer look(device, address, kEnd);
    // They share a page.
    auto first = mapped->BufferOf(device, 0, kHalf);
    auto second = mapped->BufferOf(device, kHalf / 4096 * 4096, kEnd - kHalf / 4096 * 4096);
    all.reset();
    memset(reinterpret_cast<void*>(address), 'w', kEnd);  // NOLINT(performance-no-int-to-ptr)
    ASSERT_TRUE(!detached || mapped->OnBreak());
    EXPECT_GE(OwnBytesAt(look), kEnd);
    first.reset();
    WaitForFrees();
    EXPECT_LE(OwnBytesAt(look), kEnd - (4 << 20) + 4096);
    EXPECT_TRUE(Same(*second, std::string(second->size(), 'w')));
    second.reset();
    WaitForFrees();
    EXPECT_EQ(OwnBytesAt(look), 0);
  }
}

TEST_F(MappedFileTest, LoadsGoOnByReadsWhenAWriterComesFirst) {
  Model model = Mapped({});
  TransferOptions options = OptionsFor(model);
  { UniqueFd writing(open(model.plan.files[1].path.c_str(), O_WRONLY | O_CLOEXEC)); }  // and changes nothing
  auto engine = OpenOnHost();
  auto watch = Watch::Begin(*engine, model, std::move(options));
  watch->ExpectComplete();
  EXPECT_EQ(Metrics::Get().host_bytes, static_cast<int64_t>(model.plan.files[1].expected.size));
  watch.reset();
  options = OptionsFor(model);
  ASSERT_EQ(truncate(model.plan.files[1].path.c_str(), 100), 0);
  watch = Watch::Begin(*engine, model, std::move(options));
  watch->ExpectFailure(Code::FILE_CHANGED);
  CloseAndWait(*engine);
}

TEST_F(MappedFileTest, ChangedFileIsFoundBeforeItIsMapped) {
  Model model = Mapped({});
  std::ofstream(model.plan.files[0].path, std::ios::app) << "more";
  std::shared_ptr<MappedFile> mapped;
  std::string why;
  const PlanFile& file = model.plan.files[0];
  EXPECT_EQ(MappedFile::Open(file.path, file.expected, {}, &mapped, &why).code(), Code::FILE_CHANGED);
}

TEST_F(MappedFileTest, FileThatIsOpenForWritingIsCopied) {
  Model model = Mapped({});
  const PlanFile& file = model.plan.files[0];
  UniqueFd writing(open(file.path.c_str(), O_WRONLY | O_CLOEXEC));
  EXPECT_EQ(WhyNot(file), "it is open for writing");
  EXPECT_EQ(WhyNot(file, /*insist=*/true), "it is open for writing");
  EXPECT_EQ(Map(model.plan.files[1])->protection(), MappedFile::Protection::kLease);
}

TEST_F(MappedFileTest, FileOfAnotherUserIsCopiedUnlessAskedFor) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
  Model model = Mapped({});
  const PlanFile& file = model.plan.files[0];
  ASSERT_EQ(chmod(file.path.substr(0, file.path.rfind('/')).c_str(), 0755), 0);
  ASSERT_EQ(chmod(file.path.c_str(), 0644), 0);
  ASSERT_EQ(seteuid(65534), 0);
  const std::string why = WhyNot(file);
  auto mapped = Map(file, /*insist=*/true);
  ASSERT_EQ(seteuid(0), 0);
  EXPECT_EQ(why, "it belongs to another user, so that no lease protects it");
  EXPECT_EQ(mapped->protection(), MappedFile::Protection::kNone);
  // One that changes while it is loaded is found, as a read would find it.
  ASSERT_EQ(truncate(file.path.c_str(), 4096), 0);
  EXPECT_EQ(mapped->Populate(0, file.expected.size).code(), Code::FILE_CHANGED);
}

TEST_F(MappedFileTest, WhatIsNotInMemoryIsCopiedUnlessAskedFor) {
  ModelShape shape;
  shape.max_length = 1 << 20;
  Model model = Mapped(shape);
  const PlanFile& file = model.plan.files[0];
  UniqueFd fd(open(file.path.c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(fdatasync(fd.get()), 0);
  ASSERT_EQ(posix_fadvise(fd.get(), 0, 0, POSIX_FADV_DONTNEED), 0);
  EXPECT_EQ(WhyNot(file), "it is not in memory");
  auto mapped = Map(file, /*insist=*/true);
  EXPECT_TRUE(mapped->Populate(0, file.expected.size).ok());
}

// The kernel lets a writer go on when it has waited for long, as it did for a process that was stopped.
TEST_F(MappedFileTest, LoadWhoseLeaseWasLostIsFileChanged) {
  Model model = Mapped({});
  for (PlanAllocation& allocation : model.plan.allocations) allocation.batch = 0;
  for (bool held : {true, false}) {
    TransferOptions options = OptionsFor(model);
    std::shared_ptr<MappedFile> file = options.mapped[1];
    auto buffer = file->BufferOf(std::make_shared<HostDevice>(), 0, 4096);
    ASSERT_TRUE(held || file->OnBreak());
    file->OnLost();
    EXPECT_EQ(file->Populate(0, 4096).code(), Code::FILE_CHANGED);
    auto engine = OpenOnHost();
    auto watch = Watch::Begin(*engine, model, std::move(options));
    watch->ExpectFailure(Code::FILE_CHANGED);
    CloseAndWait(*engine);
    EXPECT_EQ(TakeWarnings().size(), held ? 1 : 0);  // said once
  }
}

// Its last file is complete when the lease of an earlier one is lost.
TEST_F(MappedFileTest, LoadIsFileChangedWhicheverFileWasLost) {
  ModelShape shape;
  shape.files = 2;
  Model model = Mapped(shape);
  TransferOptions options = OptionsFor(model);
  options.window = 1;
  std::weak_ptr<MappedFile> first = options.mapped[0];
  auto engine = OpenOnHost();
  auto watch = Watch::Begin(*engine, model, std::move(options));
  ASSERT_TRUE(Eventually([&] { return watch->transfer().ready_count() > 0; }));
  first.lock()->OnLost();
  engine->SetWindow(watch->shared_transfer(), UINT32_MAX);
  watch->ExpectFailure(Code::FILE_CHANGED);
  CloseAndWait(*engine);
  TakeWarnings();
}

TEST_F(MappedFileTest, NoMoreIsMappedThanThereIsMemoryForWhenWritersCome) {
  Model model = Mapped({});
  auto open = [&](uint32_t index, uint64_t most, bool insist = false) {
    const PlanFile& file = model.plan.files[index];
    MappedFile::Options options;
    options.insist = insist;
    options.most = most;
    std::shared_ptr<MappedFile> mapped;
    std::string why;
    EXPECT_TRUE(MappedFile::Open(file.path, file.expected, options, &mapped, &why).ok());
    EXPECT_EQ(why.find("more is mapped") != std::string::npos, mapped == nullptr) << why;
    return mapped;
  };
  const uint64_t both = model.plan.files[0].expected.size + model.plan.files[1].expected.size;
  auto first = open(0, both - 1);
  EXPECT_NE(first, nullptr);
  EXPECT_EQ(open(1, both - 1), nullptr);
  EXPECT_NE(open(1, both - 1, /*insist=*/true), nullptr);
  EXPECT_NE(open(1, both), nullptr);
  EXPECT_TRUE(first->OnBreak());  // what it has is its own by now
  EXPECT_NE(open(1, both - 1), nullptr);
  first.reset();
  EXPECT_NE(open(1, both - 1), nullptr);
  uint64_t seconds = 0;
  std::ifstream("/proc/sys/fs/lease-break-time") >> seconds;
  EXPECT_LE(MappedFile::MostToMap(), AvailableHostBytes() + (1 << 30));
  EXPECT_TRUE(seconds == 0 || MappedFile::MostToMap() <= seconds << 29);
}

// A child that was forked without exec has descriptor and mapping, too.
TEST_F(MappedFileTest, ForkedChildHoldsUpNoWriter) {
  Model model = Mapped({});
  const PlanFile& file = model.plan.files[0];
  auto mapped = Map(file);
  auto buffer = mapped->BufferOf(std::make_shared<HostDevice>(), 0, model.contents[0].size());
  const pid_t child = fork();
  if (child == 0) {
    pause();
    _exit(0);
  }
  ASSERT_EQ(truncate(file.path.c_str(), 0), 0);
  EXPECT_TRUE(Same(*buffer, model.contents[0]));
  EXPECT_EQ(Metrics::Get().mapped_bytes, 0);
  ASSERT_EQ(kill(child, SIGKILL), 0);
  EXPECT_EQ(waitpid(child, nullptr, 0), child);
}

// A writer at any moment of a load and of the life of its tensors: the bytes are the old ones, or FILE_CHANGED.
TEST_F(MappedFileTest, WriterAtAnyMomentChangesNothing) {
  ModelShape shape;
  shape.files = 2;
  shape.max_length = 1 << 20;
  Random random(7);
  int complete = 0;
  for (int round = 0; round < 30; ++round) {
    Model model = Mapped(shape, static_cast<uint64_t>(round));
    for (PlanAllocation& allocation : model.plan.allocations) allocation.batch = 0;
    auto engine = OpenOnHost();
    std::thread writer([&, delay = Below(random, 3000), kind = Below(random, 3)] {
      std::this_thread::sleep_for(std::chrono::microseconds(delay));
      const std::string& path = model.plan.files[1].path;
      if (kind == 0) {
        EXPECT_EQ(truncate(path.c_str(), 0), 0);
      }
      if (kind == 1) std::ofstream(path, std::ios::binary) << std::string(model.contents[1].size(), 'x');
      if (kind == 2) {
        EXPECT_EQ(unlink(path.c_str()), 0);
      }
    });
    TransferOptions options;
    Status opened;
    for (const PlanFile& file : model.plan.files) {
      std::string why;
      std::shared_ptr<MappedFile> mapped;
      if (opened.ok()) opened = MappedFile::Open(file.path, file.expected, {}, &mapped, &why);
      options.mapped.push_back(mapped);
    }
    if (opened.ok() && options.mapped[1] != nullptr) {
      auto watch = Watch::Begin(*engine, model, std::move(options));
      watch->WaitDrained();
      if (watch->transfer().status().ok()) {
        watch->ExpectComplete();
        ++complete;
      } else {
        EXPECT_EQ(watch->transfer().status().code(), Code::FILE_CHANGED) << watch->transfer().status().message();
      }
      writer.join();
      if (watch->transfer().status().ok()) watch->ExpectComplete();
    } else {
      writer.join();
    }
    CloseAndWait(*engine);
  }
  EXPECT_GT(complete, 0);
}

TEST_F(MappedFileTest, NoMoreFilesAreMappedThanDescriptorsCanBeSparedFor) {
  Model model = Mapped({});
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  // Earlier tests may have left gaps between the numbers that are in use: filled, the next one says how many there are.
  int highest = 0;
  for (int fd = 0; fd < static_cast<int>(before.rlim_cur); ++fd)
    if (fcntl(fd, F_GETFD) >= 0) highest = fd;
  std::vector<UniqueFd> filled;
  do {
    filled.emplace_back(open("/dev/null", O_RDONLY | O_CLOEXEC));
    ASSERT_GE(filled.back().get(), 0);
  } while (filled.back().get() < highest);
  rlimit few = before;
  few.rlim_cur = static_cast<rlim_t>(filled.back().get()) + 8;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &few), 0);
  auto first = Map(model.plan.files[0]);
  EXPECT_EQ(WhyNot(model.plan.files[1]), "as many files are mapped as descriptors can be spared for (ulimit -n)");
  first.reset();
  auto second = Map(model.plan.files[1]);
  setrlimit(RLIMIT_NOFILE, &before);
}

}  // namespace
}  // namespace fst
