// Whole pages of a file's mapping: which of them are in memory, and bringing them in. None is touched by this process:
// one that the file does not have any more, or whose disk fails, is an error and no signal.
#pragma once
#include <cstddef>
#include <cstdint>

namespace fst {

// Bytes of a page: madvise(2), mremap(2) and mincore(2) want multiples.
uint64_t PageSize();

// Whether this kernel can populate mappings (MADV_POPULATE_READ and _WRITE, Linux 5.14).
bool PopulatesMappings();

// Whether the kernel says of this file what is in memory: to its owner, and of others' files that all is.
bool TellsWhatIsResident(int fd);

// Addresses and lengths are those of whole mapped pages, `told` is what TellsWhatIsResident says of their file. Any
// thread.

// Which part of them is in memory, as some of them tell: 0 to 1.
double ResidentPart(char* pages, uint64_t length);

// Whether each is known to be in memory.
bool AllResident(char* pages, uint64_t length, bool told);

// Brings them in, without a copy; reads those that are not in memory. Blocks. The errno of madvise(2): EFAULT for what
// is after the end of the file, EIO, ENOMEM. The first touch of a page may still be a fault, but never one that reads.
int PopulatePages(char* pages, uint64_t length, bool told);

// Gives back what this process has of its own in them: later they show the file again. Nobody may be using them.
void DropPages(char* pages, uint64_t length);

// Makes them this process's own, as a write does. Blocks. The errno of madvise(2).
int PopulatePagesForWrites(char* pages, uint64_t length);

}  // namespace fst
