// What the type of a file system tells of its files.
#pragma once

namespace fst {

struct FileSystemTraits {
  // Reads past the page cache (O_DIRECT) go straight to a disk of this machine. Not so NFS, Lustre and FUSE, which have
  // caches of their own and want large sequential reads, nor tmpfs, which has no disk.
  bool on_disk = false;
  // A lease is refused while anybody can write to a file, and breaks before anybody can. On NFS, FUSE or Lustre another
  // machine or a daemon may change a file behind the kernel's back. On overlayfs the file that a writer has mapped
  // (MAP_SHARED) is the one below: once they have closed its descriptor, the lease knows nothing of them.
  bool leases_protect = false;
  // A look at a file asks nobody but this kernel.
  bool answers_at_once = false;
  // Nothing can change a file.
  bool read_only = false;
  // tmpfs.
  bool in_memory = false;
};

// Of the file system that holds an open file; nothing is known of one that is not listed. The errno of fstatfs(2), 0 on
// success. Any thread.
int FileSystemOf(int fd, FileSystemTraits* out);

}  // namespace fst
