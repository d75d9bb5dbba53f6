#include "reader/usrbio/usrbio_api.h"

#include <dlfcn.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "emulators/hf3fs/client_api.h"

namespace fst::usrbio {
namespace {

namespace fs = std::filesystem;
constexpr char kEmulator[] = FST_BINARY_DIR "/emulators/libhf3fs_api_shared.so";

class UsrbioApiTest : public ::testing::Test {
 protected:
  static constexpr char kFolderVariable[] = "FST_TEST_USRBIO_FOLDER";

  void SetUp() override {
    GTEST_FLAG_SET(death_test_style, "threadsafe");
    // EXPECT_LOADS's child runs the test again up to its statement, in its parent's folder.
    const char* inherited = getenv(kFolderVariable);
    owner = inherited == nullptr;
    std::string name = ::testing::TempDir() + "/fst-usrbio-XXXXXX";
    if (owner) {
      ASSERT_NE(mkdtemp(name.data()), nullptr);
    }
    folder = owner ? fs::canonical(name).string() : inherited;
    setenv(kFolderVariable, folder.c_str(), 1);
    for (const char* variable : kVariables) {
      const char* value = getenv(variable);
      before.push_back(value ? value : "");
      unsetenv(variable);
    }
    setenv("HOME", folder.c_str(), 1);
  }
  void TearDown() override {
    for (size_t i = 0; i < before.size(); i++) {
      before[i].empty() ? unsetenv(kVariables[i]) : setenv(kVariables[i], before[i].c_str(), 1);
    }
    if (!owner) return;
    unsetenv(kFolderVariable);
    fs::remove_all(folder);
  }
  std::string Touch(const std::string& path) {
    fs::create_directories(fs::path(folder + "/" + path).parent_path());
    std::ofstream(folder + "/" + path) << "x";
    return folder + "/" + path;
  }
  void Env(const char* name, const std::string& value) { setenv(name, value.c_str(), 1); }

  static std::string Load() {
    const UsrbioApi* api = nullptr;
    Status status = LoadUsrbio(&api);
    return status.ok() ? "OK " + api->library + " " + api->note : CodeName(status.code()) + (": " + status.message());
  }

  static constexpr const char* kVariables[] = {"FASTSAFETENSORS_3FS_LIB",
                                               "HF3FS_LIB_DIR",
                                               "LD_LIBRARY_PATH",
                                               "PYTHONPATH",
                                               "VIRTUAL_ENV",
                                               "CONDA_PREFIX",
                                               "HOME"};
  std::string folder;
  bool owner = false;
  std::vector<std::string> before;
};

using UsrbioApiDeathTest = UsrbioApiTest;

// `text` is evaluated in a process of its own, which has loaded nothing yet, and matches `regex`.
#define EXPECT_LOADS(text, regex)              \
  EXPECT_EXIT(                                 \
      {                                        \
        fprintf(stderr, "%s", (text).c_str()); \
        exit(0);                               \
      },                                       \
      ::testing::ExitedWithCode(0), regex)

#define SKIP_WHERE_INSTALLED \
  if (!FindHf3fsLibrary().empty()) GTEST_SKIP() << "a 3FS client library is installed: " << FindHf3fsLibrary()

TEST_F(UsrbioApiTest, FindsNothingWhereNothingIs) {
  SKIP_WHERE_INSTALLED;
  Touch("lib/libhf3fs_api_shared.so");
  EXPECT_EQ(FindHf3fsLibrary(), "");
}

TEST_F(UsrbioApiTest, SearchesInOrder) {
  SKIP_WHERE_INSTALLED;
  std::string user = Touch(".local/lib/python3.9/site-packages/hf3fs_py_usrbio.libs/libhf3fs_api_shared-0a1b.so");
  EXPECT_EQ(FindHf3fsLibrary(), user);
  std::string newer = Touch(".local/lib/python3.12/site-packages/hf3fs_py_usrbio.libs/libhf3fs_api_shared-0a1b.so.1");
  EXPECT_EQ(FindHf3fsLibrary(), newer) << "3.12 is newer than 3.9";
  std::string conda = Touch("conda/lib/python3.9/site-packages/hf3fs_py_usrbio.libs/libhf3fs_api_shared-ff.so");
  Env("CONDA_PREFIX", folder + "/conda");
  EXPECT_EQ(FindHf3fsLibrary(), conda);
  std::string venv = Touch("venv/lib/python3.11/site-packages/hf3fs_py_usrbio.libs/libhf3fs_api_shared-ff.so");
  Env("VIRTUAL_ENV", folder + "/venv");
  EXPECT_EQ(FindHf3fsLibrary(), venv);
  std::string path = Touch("py2/hf3fs_py_usrbio.libs/libhf3fs_api_shared-ff.so");
  Env("PYTHONPATH", folder + "/py1:" + folder + "/py2");
  EXPECT_EQ(FindHf3fsLibrary(), path);
  std::string loader = Touch("ld/libhf3fs_api_shared.so");
  Env("LD_LIBRARY_PATH", "/absent:" + folder + "/ld");
  EXPECT_EQ(FindHf3fsLibrary(), loader);
  Touch("dir/libhf3fs_api_shared-12.so");
  std::string plain = Touch("dir/libhf3fs_api_shared.so");
  Env("HF3FS_LIB_DIR", folder + "/dir");
  EXPECT_EQ(FindHf3fsLibrary(), plain);
  std::string file = Touch("any-name.so");
  Env("FASTSAFETENSORS_3FS_LIB", file);
  EXPECT_EQ(FindHf3fsLibrary(), file);
}

TEST_F(UsrbioApiTest, SearchesEveryFolderOfAWheel) {
  SKIP_WHERE_INSTALLED;
  Env("VIRTUAL_ENV", folder + "/venv");
  const std::string packages = "venv/lib/python3.12/site-packages/";
  // From the last choice to the first.
  for (const char* place : {"hf3fs_py_usrbio/", "hf3fs_py_usrbio/lib/", "", "hf3fs_fuse/.libs/",
                            "hf3fs_py_usrbio/.libs/", "hf3fs_py_usrbio.libs/"}) {
    std::string library = Touch(packages + place + "libhf3fs_api_shared.so");
    EXPECT_EQ(FindHf3fsLibrary(), library);
  }
}

TEST_F(UsrbioApiDeathTest, FallsThroughAnEmptyFolderButNotThroughAWrongFile) {
  std::string loader = Touch("ld/libhf3fs_api_shared.so");
  Env("LD_LIBRARY_PATH", folder + "/ld");
  Env("HF3FS_LIB_DIR", folder + "/absent");
  EXPECT_EQ(FindHf3fsLibrary(), loader);
  Env("FASTSAFETENSORS_3FS_LIB", folder + "/absent.so");
  EXPECT_EQ(FindHf3fsLibrary(), "");
  EXPECT_LOADS(Load(), "^COPIER_UNAVAILABLE: FASTSAFETENSORS_3FS_LIB names \"" + folder + "/absent.so\"");
}

TEST_F(UsrbioApiTest, OtherNamesAreNoLibrary) {
  for (const char* name : {"libhf3fs_api_shared.so/x", "libhf3fs_api_shared", "libhf3fs_api_sharedx.so",
                           "libhf3fs_api_shared.sox", "libhf3fs_api.so", "libhf3fs_api_shared.a"}) {
    Touch(std::string("dir") + std::to_string(strlen(name)) + "/" + name);
    Env("HF3FS_LIB_DIR", folder + "/dir" + std::to_string(strlen(name)));
    EXPECT_EQ(FindHf3fsLibrary(), "") << name;
  }
}

TEST_F(UsrbioApiDeathTest, SaysWhereItSearchedAndWhyAFileCannotBeLoaded) {
  SKIP_WHERE_INSTALLED;
  Env("HF3FS_LIB_DIR", folder);
  EXPECT_LOADS(
      Load(),
      "^COPIER_UNAVAILABLE: the 3FS client library libhf3fs_api_shared.so was not found in HF3FS_LIB_DIR .*set "
      "FASTSAFETENSORS_3FS_LIB");
  std::string file = Touch("libhf3fs_api_shared.so");
  EXPECT_LOADS(Load(), "^COPIER_UNAVAILABLE: the 3FS client library " + file + " cannot be loaded: .*file too short");
}

TEST_F(UsrbioApiDeathTest, LoadsOnceAndRemembersSuccessOnly) {
  SKIP_WHERE_INSTALLED;
  EXPECT_LOADS(
      [this] {
        std::string first = Load();
        Env("FASTSAFETENSORS_3FS_LIB", kEmulator);
        std::string second = Load();
        unsetenv("FASTSAFETENSORS_3FS_LIB");
        return first.substr(0, 18) + "|" + second + "|" + Load();
      }(),
      "^COPIER_UNAVAILABLE.OK .*/emulators/libhf3fs_api_shared.so .OK .*/emulators/libhf3fs_api_shared.so $");
}

// What two functions answer, and which functions are missing.
std::string Filled() {
  std::unique_ptr<const ClientApi> api;
  if (!LoadClient(&api).ok()) return "not loaded";
  std::string text = std::to_string(api->ior_size(1)) + (api->is_hf3fs(-1) ? " yes" : " no");
#define X(name) text += api->name.pointer != nullptr ? "" : " without " #name;
  FST_USRBIO_API(X)
#undef X
  return text + (api->iovunlink ? " iovunlink" : "");
}

TEST_F(UsrbioApiDeathTest, FillsTheTable) {
  Env("FASTSAFETENSORS_3FS_LIB", kEmulator);
  EXPECT_LOADS(Filled(), "^4336 no iovunlink$");
}

TEST_F(UsrbioApiDeathTest, KeepsItsSymbolsToItself) {
  Env("FASTSAFETENSORS_3FS_LIB", kEmulator);
  EXPECT_LOADS(
      [] {
        std::string loaded = Load().substr(0, 2);
        return loaded + (dlsym(RTLD_DEFAULT, "hf3fs_prep_io") == nullptr ? " hidden" : " global");
      }(),
      "^OK hidden$");
}

TEST_F(UsrbioApiDeathTest, NamesEveryMissingFunction) {
  std::string other;
  for (const char* name : {"/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"}) {
    if (fs::exists(name)) other = name;
  }
  if (other.empty()) GTEST_SKIP() << "no libm.so.6 to stand for a wrong library";
  Env("FASTSAFETENSORS_3FS_LIB", other);
  EXPECT_LOADS(Load(),
               "^COPIER_UNAVAILABLE: the 3FS client library .*libm.so.6 lacks hf3fs_iovwrap, hf3fs_iorcreate4, "
               "hf3fs_iordestroy, hf3fs_reg_fd, hf3fs_dereg_fd, hf3fs_prep_io, hf3fs_submit_ios, hf3fs_wait_for_ios; "
               "install");
}

TEST_F(UsrbioApiDeathTest, NeedsNoFunctionThatIsNeverCalled) {
  Env("FASTSAFETENSORS_3FS_LIB", FST_BINARY_DIR "/test-support/libbare_hf3fs.so");
  EXPECT_LOADS(Load(), "^OK .*/libbare_hf3fs.so $");
}

TEST_F(UsrbioApiDeathTest, ThreadsLoadItTogether) {
  Env("FASTSAFETENSORS_3FS_LIB", kEmulator);
  EXPECT_LOADS(
      [] {
        std::vector<const UsrbioApi*> apis(8, nullptr);
        std::vector<std::thread> threads;
        for (auto& api : apis) threads.emplace_back([&api] { EXPECT_TRUE(LoadUsrbio(&api).ok()); });
        for (auto& thread : threads) thread.join();
        for (auto* api : apis) {
          if (api == nullptr || api != apis[0]) return std::string("different");
        }
        return std::string("one");
      }(),
      "^one$");
}

rlimit Limit(rlim_t soft, rlim_t hard) {
  rlimit limit;
  limit.rlim_cur = soft;
  limit.rlim_max = hard;
  return limit;
}

TEST(OpenFilesLimit, IsLoweredOnlyWhereItIsDangerous) {
  rlimit lowered;
  EXPECT_FALSE(OpenFilesLimitIsDangerous(Limit(1024, 1 << 20), &lowered));
  EXPECT_EQ(lowered.rlim_max, rlim_t{1} << 20);
  EXPECT_FALSE(OpenFilesLimitIsDangerous(Limit(1024, rlim_t{1} << 22), &lowered));
  EXPECT_TRUE(OpenFilesLimitIsDangerous(Limit(1024, (rlim_t{1} << 22) + 1), &lowered));
  EXPECT_EQ(lowered.rlim_max, rlim_t{1048576});
  EXPECT_EQ(lowered.rlim_cur, rlim_t{1024});
  EXPECT_TRUE(OpenFilesLimitIsDangerous(Limit(RLIM_INFINITY, RLIM_INFINITY), &lowered));
  EXPECT_EQ(lowered.rlim_max, rlim_t{1048576});
  EXPECT_EQ(lowered.rlim_cur, rlim_t{1048576});
  EXPECT_TRUE(OpenFilesLimitIsDangerous(Limit(rlim_t{1} << 30, rlim_t{1} << 30), &lowered));
  EXPECT_EQ(lowered.rlim_cur, rlim_t{1048576});
}

rlimit g_set;
int g_calls;

TEST(OpenFilesLimit, SaysWhatItDidOrWhyItRefuses) {
  auto accept = [](const rlimit* limit) {
    g_set = *limit;
    g_calls++;
    return 0;
  };
  g_calls = 0;
  std::string note = "old";
  EXPECT_TRUE(LowerOpenFilesLimit(Limit(1024, 4096), accept, &note).ok());
  EXPECT_EQ(note, "");
  EXPECT_EQ(g_calls, 0);
  EXPECT_TRUE(LowerOpenFilesLimit(Limit(1024, rlim_t{1} << 30), accept, &note).ok());
  EXPECT_EQ(g_calls, 1);
  EXPECT_EQ(g_set.rlim_max, rlim_t{1048576});
  EXPECT_NE(note.find("from 1073741824 to 1048576"), std::string::npos) << note;
  auto refuse = [](const rlimit*) {
    errno = EPERM;
    return -1;
  };
  Status status = LowerOpenFilesLimit(Limit(1024, RLIM_INFINITY), refuse, &note);
  EXPECT_EQ(status.code(), Code::COPIER_UNAVAILABLE);
  for (const char* part : {"RLIMIT_NOFILE) is unlimited", "GiBs or aborts", "EPERM", "ulimit -Hn 1048576"}) {
    EXPECT_NE(status.message().find(part), std::string::npos) << part << " in: " << status.message();
  }
}

TEST_F(UsrbioApiDeathTest, LowersTheProcessLimitBeforeLoading) {
  rlimit before_load;
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before_load), 0);
  rlimit dangerous = Limit(before_load.rlim_cur, (rlim_t{1} << 22) + 5);
  if (setrlimit(RLIMIT_NOFILE, &dangerous) != 0 || setrlimit(RLIMIT_NOFILE, &before_load) != 0) {
    GTEST_SKIP() << "this process may not raise its hard limit of open files";
  }
  Env("FASTSAFETENSORS_3FS_LIB", kEmulator);
  auto load = [] {
    rlimit limit = Limit(1024, (rlim_t{1} << 22) + 5);
    if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return std::string("setrlimit failed");
    std::string loaded = Load();
    getrlimit(RLIMIT_NOFILE, &limit);
    return std::to_string(limit.rlim_cur) + " " + std::to_string(limit.rlim_max) + " " + loaded;
  };
  EXPECT_LOADS(load(), "^1024 1048576 OK .*lowered the hard limit of open files from 4194309 to 1048576");
}

}  // namespace
}  // namespace fst::usrbio
