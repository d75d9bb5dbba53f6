// hf3fs_fuse [option…] BACKING MOUNT: serves the files of BACKING, to be read, and 3fs-virt/iovs at MOUNT, as 3FS's
// daemon of that name does, until it is killed, told to end (SIGTERM), or unmounted. It says "ready" once it serves. It
// does no I/O of rings: the emulated client library (../hf3fs) does that in the client's process.
//
//   --readonly      as the command `readonly 1`
//   --iovs=N        links at a time, 1048576 if not given; one more is EMFILE
//   --chunk=BYTES   st_blksize of files, a power of two, 1048576 if not given
//   --auto-unmount  the mount goes when the daemon dies, instead of answering ENOTCONN
//   --semaphores    with the three semaphores of a real daemon in /dev/shm, which stay there when it is killed
//   --die-with-parent  SIGKILL when the thread ends that started it
//
// Each line on its standard input is a command, answered by a line "ok" or "unknown":
//
//   readonly 0|1  removing a link answers EROFS
//   deny 0|1      reading a link answers EPERM
//   no-pids 0|1   clients are not told apart, as from a sibling PID namespace: one that ends takes all links along
//   hold N        the Nth link from now, and those after it, are not answered until `hold 0`
//   lose          forgets all links, and the kernel does not hear of it
//   stale         forgets all files: what is asked of an open one answers ESTALE until it is looked up again
//   links         before "ok", a line for each link: slot, thread, uid, bytes, name, target
#include <fcntl.h>
#include <getopt.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>
#include <thread>

#include "emulators/hf3fs_fuse/file_system.h"

namespace {

struct Arguments {
  std::string backing, mount;
  size_t iovs = 1 << 20;
  uint32_t chunk = 1 << 20;
  bool readonly = false, auto_unmount = false, semaphores = false;

  bool Parse(int argc, char** argv) {
    const option options[] = {{"readonly", no_argument, nullptr, 'r'},
                              {"iovs", required_argument, nullptr, 'i'},
                              {"chunk", required_argument, nullptr, 'c'},
                              {"auto-unmount", no_argument, nullptr, 'u'},
                              {"die-with-parent", no_argument, nullptr, 'd'},
                              {"semaphores", no_argument, nullptr, 's'},
                              {nullptr, 0, nullptr, 0}};
    for (int found; (found = getopt_long(argc, argv, "", options, nullptr)) != -1;) {
      if (found == 'r') readonly = true;
      if (found == 'i') iovs = strtoull(optarg, nullptr, 10);
      if (found == 'c') chunk = static_cast<uint32_t>(strtoul(optarg, nullptr, 10));
      if (found == 'u') auto_unmount = true;
      if (found == 's') semaphores = true;
      if (found == 'd') (void)prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (found == '?') return false;
    }
    char real[PATH_MAX];
    if (argc - optind != 2 || realpath(argv[optind + 1], real) == nullptr) return false;
    backing = argv[optind];
    mount = real;
    return true;
  }
};

bool Obey(emu::FileSystem* fs, const std::string& line) {
  std::istringstream words(line);
  std::string command;
  int number = 0;
  words >> command >> number;
  const bool on = number != 0;
  if (command == "readonly") return fs->readonly = on, true;
  if (command == "deny") return fs->deny_readlink = on, true;
  if (command == "no-pids") return fs->sees_no_pids = on, true;
  if (command == "hold") return fs->hold = number, true;
  if (command == "lose") return fs->links.Clear(), true;
  if (command == "stale") return fs->nodes.ForgetAll(), true;
  if (command != "links") return false;
  for (const auto& [slot, link] : fs->links.List(/*of_all=*/true, 0)) {
    std::cout << slot << ' ' << link.maker << ' ' << link.uid << ' ' << link.memory->size << ' ' << link.name << ' '
              << link.target << '\n';
  }
  return true;
}

// Ends with the process, or with its standard input.
void ObeyCommands(emu::FileSystem* fs) {
  for (std::string line; std::getline(std::cin, line);) std::cout << (Obey(fs, line) ? "ok" : "unknown") << std::endl;
}

// Makes the semaphores that clients wake a daemon by: /dev/shm/sem.hf3fs-submit-ios.<uuid>.
std::vector<std::string> MakeSemaphores() {
  std::vector<std::string> files;
  for (int i = 0; i < 3; i++) {
    std::ifstream uuids("/proc/sys/kernel/random/uuid");
    std::string uuid;
    std::getline(uuids, uuid);
    const std::string name = "hf3fs-submit-ios." + uuid;
    if (sem_open(("/" + name).c_str(), O_CREAT, 0666, 0) == SEM_FAILED) continue;
    files.push_back("/dev/shm/sem." + name);
    (void)chmod(files.back().c_str(), 0666);
  }
  return files;
}

int Serve(const Arguments& arguments) {
  auto* fs = new emu::FileSystem(arguments.mount, arguments.iovs, arguments.chunk);  // commands may outlive the mount
  fs->readonly = arguments.readonly;
  if (arguments.semaphores) fs->semaphores = MakeSemaphores();
  int error = fs->nodes.Open(arguments.backing);
  if (error != 0) {
    fprintf(stderr, "hf3fs_fuse: %s: %s\n", arguments.backing.c_str(), strerror(error));
    return 1;
  }
  std::string options =
      "subtype=hf3fs,fsname=hf3fs.emulated,allow_other,default_permissions,max_read=" + std::to_string(emu::kMaxRead) +
      (arguments.auto_unmount ? ",auto_unmount" : "");
  std::string program = "hf3fs_fuse", flag = "-o";
  char* texts[] = {program.data(), flag.data(), options.data()};
  fuse_args args = FUSE_ARGS_INIT(3, texts);
  fuse_session* session = fuse_session_new(&args, &emu::Operations(), sizeof(fuse_lowlevel_ops), fs);
  int status = 1;
  if (session != nullptr && fuse_set_signal_handlers(session) == 0) {
    if (fuse_session_mount(session, arguments.mount.c_str()) == 0) {
      std::cout << "ready" << std::endl;
      std::thread(ObeyCommands, fs).detach();
      fuse_loop_config config = {0, 10};
      status = fuse_session_loop_mt(session, &config) < 0 ? 1 : 0;
      fuse_session_unmount(session);
    }
    fuse_remove_signal_handlers(session);
  }
  if (session != nullptr) fuse_session_destroy(session);
  for (const std::string& file : fs->semaphores) unlink(file.c_str());
  fuse_opt_free_args(&args);
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  if (!arguments.Parse(argc, argv)) {
    fprintf(stderr, "usage: hf3fs_fuse [option…] BACKING MOUNT (csrc/emulators/hf3fs_fuse/main.cc has the options)\n");
    return 2;
  }
  int status = Serve(arguments);
  fflush(nullptr);
  _Exit(status);  // the thread that reads commands may be in the middle of one
}
