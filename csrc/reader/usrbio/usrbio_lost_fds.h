// Descriptors that a daemon's death has lost. The library asks a file's daemon before it forgets the file: where that
// is dead, it does nothing, and keeps two things for ever, the number that the file was registered under and a
// duplicate. It forgets both when the number is another, live descriptor's by then.
#pragma once
#include <cstddef>

#include "base/fd.h"
#include "reader/usrbio/usrbio_api.h"

namespace fst::usrbio {

// Deregisters `fd` and closes it. Where the library still has it, it stays open instead, so that nobody gets its
// number, until GiveBackLostFds, which is called otherwise. `duplicate` is the library's; 0: unknown. Asks the daemon:
// blocks. Any thread.
void CloseRegistered(const UsrbioApi& api, UniqueFd fd, int duplicate);

// Makes the library forget what is lost, and closes it: `live`, a descriptor whose daemon answers, takes each number
// for that. Asks the daemon: blocks. Any thread.
void GiveBackLostFds(const UsrbioApi& api, int live);

// Where there are no descriptors left: closes one that is lost. Its number is then free, and the library's duplicate is
// left until a file is registered under that number. False: none is lost. Any thread.
bool CloseOneLostFd();

// Whether the daemon of a descriptor answers. Blocks.
bool Answers(int fd);

// How many descriptors are lost.
size_t LostFds();

}  // namespace fst::usrbio
