// A standing crew of threads that share the pieces of a call with its caller.
//
// Version 1 started threads for every call: two took 1.1 times as long as one for 16,384 rows of 64 (0.25 ms). Version 2, here:
// threads are started by the first call that wants them and then wait; between two calls they look for work for kPatience
// before they sleep, since waking one takes tens of microseconds in a virtual machine. A call is cut into more pieces than
// threads, which take the next piece when they are done with one, so that a thread that comes late delays nobody: 1.7 times
// as fast as one. The caller takes pieces from the front, the others from the back, ids are checked piece by piece instead
// of all before, and results begin on a cache line: 1.85 times.
#pragma once

#include <cstdint>

namespace hfh {

constexpr int64_t kMostThreads = 64;  // that ever wait, however many are asked for

// run(context, slot, piece) for every piece of 0 ... pieces, by the caller and up to ``threads`` - 1 others. ``slot`` is below
// ``threads`` and belongs to one thread at a time. What one of them throws is thrown here. May be called from many threads at
// once, and after a fork, whose child begins without the crew.
void share(int64_t pieces, int64_t threads, void (*run)(const void* context, int64_t slot, int64_t piece), const void* context);

}  // namespace hfh
