// Runs blocks of a kernel on the CPU: fibers, barriers, warp primitives, and checks of every memory access.
// Not instrumented; kernels.cpp is, by -fsanitize=thread, and calls the __tsan_* hooks below for each load and store.
#include "cuda_sim.h"

#include <sys/mman.h>
#include <cstdio>
#include <cstdlib>
#if !defined(__x86_64__) || defined(SIM_UCONTEXT)
#define SIM_USE_UCONTEXT 1
#include <ucontext.h>
#endif

constexpr size_t MAX_SHARED = 227 << 10;
constexpr size_t MAX_THREADS = 1024;
constexpr size_t STACK = 64 << 10;

extern __thread __attribute__((aligned(16))) unsigned char dyn_smem[];
__thread __attribute__((aligned(16))) unsigned char dyn_smem[MAX_SHARED];

namespace sim {

// ------------------------------------------------------------------------------------------ fibers

#ifdef SIM_USE_UCONTEXT
struct Context {
    ucontext_t at;
};
static void switch_context(Context& save, Context& load) { swapcontext(&save.at, &load.at); }
static void start_context(Context& c, char* stack, void (*entry)()) {
    getcontext(&c.at);
    c.at.uc_stack.ss_sp = stack;
    c.at.uc_stack.ss_size = STACK;
    c.at.uc_link = nullptr;
    makecontext(&c.at, entry, 0);
}
#else
struct Context {
    void* stack_pointer;
};
extern "C" void moeplan_sim_switch(void** save, void* load);
// Saves the registers that a call must keep, changes stacks and takes the others up again.
asm(R"(
.text
.globl moeplan_sim_switch
.hidden moeplan_sim_switch
.type moeplan_sim_switch,@function
moeplan_sim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  ret
.size moeplan_sim_switch,.-moeplan_sim_switch
)");
static void switch_context(Context& save, Context& load) { moeplan_sim_switch(&save.stack_pointer, load.stack_pointer); }
static void start_context(Context& c, char* stack, void (*entry)()) {
    void** top = reinterpret_cast<void**>(stack + STACK);
    *--top = nullptr;  // a return address, so that the stack is aligned as after a call
    *--top = reinterpret_cast<void*>(entry);
    c.stack_pointer = top - 6;
}
#endif

// ------------------------------------------------------------------------------------------ a block

enum class State : uint8_t { Ready, AtBarrier, AtWarp, Done };
struct Thread {
    Context context;
    uint3 index;
    unsigned number;
    State state;
    int site;           // the barrier it waits at
    uint32_t mask;      // the lanes it waits for
    uint64_t handed;    // what it hands to its warp
    bool orders;         // whether the warp primitive it waits in is __syncwarp
    uint32_t block_era;  // barriers passed
    uint32_t warp_era;   // __syncwarp passed
};
struct Allocation {
    uint64_t first, bytes;
};
// One launch, as Rust hands it over (`RawLaunch` in host.rs).
struct Request {
    const Kernel* kernel;
    void** arguments;
    uint3 grid, block;
    size_t shared_bytes;
    const Allocation* allocations;  // live device memory, sorted by address
    size_t num_allocations;
    uint32_t order;
};
struct Worker {
    Context scheduler;
    Thread threads[MAX_THREADS];
    uint64_t handed[MAX_THREADS];  // what the warp primitive being released moved
    char* stacks = nullptr;
    const Request* request = nullptr;
    uint3 block_index;
    unsigned count = 0;
    Thread* current = nullptr;
    char fault[256];
    ~Worker() {
        if (stacks) munmap(stacks, MAX_THREADS * STACK);
    }
};
static thread_local Worker* worker = nullptr;

static void yield() { switch_context(worker->current->context, worker->scheduler); }
// Ends the block: the scheduler never resumes it.
[[noreturn]] static void stop() {
    worker->current->state = State::Done;
    yield();
    abort();
}
static void describe(const char* what) {
    const uint3 b = worker->block_index, t = worker->current->index;
    if (!worker->fault[0])
        snprintf(worker->fault, sizeof worker->fault, "%s, block (%u, %u, %u) thread (%u, %u, %u)", what, b.x, b.y, b.z, t.x,
                 t.y, t.z);
}
static void entry() {
    worker->request->kernel->call(worker->request->arguments);
    stop();
}

uint3 thread_index() { return worker->current->index; }
uint3 block_index() { return worker->block_index; }
uint3 block_dim() { return worker->request->block; }
uint3 grid_dim() { return worker->request->grid; }
unsigned lane() { return worker->current->number & 31; }

void barrier(int site) {
    Thread& t = *worker->current;
    t.site = site;
    t.state = State::AtBarrier;
    yield();
}

// Waits for the lanes of `mask`; afterwards worker->handed holds what each of this warp handed in.
static const uint64_t* meet(uint32_t mask, uint64_t bits, bool orders = false) {
    Thread& t = *worker->current;
    if (!(mask >> (t.number & 31) & 1)) {
        describe("a lane calls a warp primitive with a mask that leaves it out");
        stop();
    }
    t.mask = mask;
    t.handed = bits;
    t.orders = orders;
    t.state = State::AtWarp;
    yield();
    return &worker->handed[t.number & ~31u];
}
void sync_warp(uint32_t mask) { meet(mask, 0, true); }
uint64_t exchange(uint32_t mask, uint64_t bits, unsigned source) {
    if (!(mask >> source & 1)) {
        describe("a lane reads from a lane outside its mask");
        stop();
    }
    return meet(mask, bits)[source];
}
uint32_t ballot(uint32_t mask, bool predicate) {
    const uint64_t* handed = meet(mask, predicate);
    uint32_t votes = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1) votes |= (uint32_t)handed[i] << i;
    return votes;
}
uint32_t match(uint32_t mask, uint64_t bits) {
    const uint64_t* handed = meet(mask, bits);
    uint32_t peers = 0;
    for (int i = 0; i < 32; i++)
        if (mask >> i & 1 && handed[i] == bits) peers |= 1u << i;
    return peers;
}

// ------------------------------------------------------------------------------------------ scheduler

// Sets lanes free whose whole mask has arrived. It runs only while every thread waits: by then all lanes have taken
// what the primitive before this one moved, so `handed` may be overwritten.
static bool release_warp(Worker& w, unsigned first, const char*& why) {
    unsigned lanes = w.count - first < 32 ? w.count - first : 32;
    uint32_t present = lanes == 32 ? ~0u : (1u << lanes) - 1, waiting = 0;
    for (unsigned i = 0; i < lanes; i++)
        if (w.threads[first + i].state == State::AtWarp) waiting |= 1u << i;
    bool released = false;
    for (unsigned i = 0; i < lanes; i++) {
        if (!(waiting >> i & 1)) continue;
        uint32_t wanted = w.threads[first + i].mask & present;
        if (wanted & ~waiting) continue;
        for (unsigned j = 0; j < lanes; j++) {
            if (!(wanted >> j & 1)) continue;
            Thread& t = w.threads[first + j];
            if (t.mask != w.threads[first + i].mask) {
                why = "lanes meet in a warp primitive with different masks";
                return false;
            }
            w.handed[first + j] = t.handed;
            t.warp_era += t.orders;
            t.state = State::Ready;
        }
        waiting &= ~wanted;
        released = true;
    }
    return released;
}

static const char* release_block(Worker& w) {
    int site = -1;
    for (unsigned i = 0; i < w.count; i++) {
        Thread& t = w.threads[i];
        if (t.state != State::AtBarrier) continue;
        if (site < 0) site = t.site;
        if (t.site != site) return "threads of a block wait at different barriers";
    }
    for (unsigned i = 0; i < w.count; i++) {
        Thread& t = w.threads[i];
        if (t.state != State::AtBarrier) continue;
        t.block_era++;
        t.state = State::Ready;
    }
    return nullptr;
}

static uint64_t next_random(uint64_t& s) {
    s ^= s << 13, s ^= s >> 7, s ^= s << 17;
    return s;
}

// Runs ready threads until all are done. Order 0 runs them forward, 1 backward, any other number is a seed that
// shuffles them anew in every round.
static const char* run_block(Worker& w, uint64_t block) {
    const Request& r = *w.request;
    static thread_local unsigned turn[MAX_THREADS];
    for (unsigned i = 0; i < w.count; i++) {
        Thread& t = w.threads[i];
        t.index = {i % r.block.x, i / r.block.x % r.block.y, i / r.block.x / r.block.y};
        t.number = i;
        t.state = State::Ready;
        t.block_era = t.warp_era = 0;
        start_context(t.context, w.stacks + i * STACK, entry);
        turn[i] = r.order == 1 ? w.count - 1 - i : i;
    }
    uint64_t random = (r.order + block * 977) * 0x9E3779B97F4A7C15ull | 1;
    unsigned alive = w.count;
    while (alive > 0) {
        if (r.order > 1)
            for (unsigned i = w.count; i > 1; i--) {
                unsigned j = next_random(random) % i, swapped = turn[i - 1];
                turn[i - 1] = turn[j];
                turn[j] = swapped;
            }
        for (unsigned i = 0; i < w.count; i++) {
            Thread& t = w.threads[turn[i]];
            if (t.state != State::Ready) continue;
            w.current = &t;
            switch_context(w.scheduler, t.context);
            if (w.fault[0]) return w.fault;
            if (t.state == State::Done) alive--;
        }
        if (alive == 0) break;
        bool released = false;
        const char* why = nullptr;
        for (unsigned first = 0; first < w.count && !why; first += 32) released |= release_warp(w, first, why);
        if (why) return why;
        if (released) continue;
        unsigned at_barrier = 0;
        for (unsigned i = 0; i < w.count; i++) at_barrier += w.threads[i].state == State::AtBarrier;
        if (at_barrier != alive) return "deadlock: threads wait for a warp or a barrier that others never reach";
        if (const char* fault = release_block(w)) return fault;
    }
    return nullptr;
}

// ------------------------------------------------------------------------------------------ memory

static const Allocation* find(const Request& r, uint64_t at) {
    static thread_local size_t last = 0;
    if (last < r.num_allocations && at - r.allocations[last].first < r.allocations[last].bytes) return &r.allocations[last];
    size_t low = 0, high = r.num_allocations;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (r.allocations[middle].first <= at) low = middle + 1;
        else high = middle;
    }
    if (low == 0 || at - r.allocations[low - 1].first >= r.allocations[low - 1].bytes) return nullptr;
    last = low - 1;
    return &r.allocations[last];
}

static void record_access(Worker& w, uint64_t at, size_t bytes, bool write, bool atomic);

// Device memory must be one live allocation, shared memory what the launch asked for; else only the thread's own stack.
static void check(const void* p, size_t bytes, bool write, bool atomic = false) {
    if (!worker) return;  // the table of kernels, read outside any launch
    Worker& w = *worker;
    uint64_t at = reinterpret_cast<uint64_t>(p);
    uint64_t stack = reinterpret_cast<uint64_t>(w.stacks) + w.current->number * STACK;
    if (at - stack < STACK) return;
    uint64_t shared = reinterpret_cast<uint64_t>(dyn_smem);
    bool inside;
    if (at - shared < MAX_SHARED) {
        inside = at + bytes <= shared + w.request->shared_bytes;
    } else {
        const Allocation* a = find(*w.request, at);
        inside = a && at + bytes <= a->first + a->bytes;
    }
    if (!inside) {
        char what[128];
        snprintf(what, sizeof what, "%s of %zu bytes out of bounds at %p", write ? "write" : "read", bytes, p);
        describe(what);
        stop();
    }
    if (at % (bytes <= 16 ? bytes : 1)) {
        describe("misaligned access");
        stop();
    }
    record_access(w, at, bytes, write, atomic);
}

template <class T> static T add(T* p, T v) {
    check(p, sizeof(T), true, true);
    T old, sum;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do {
        sum = old + v;
    } while (!__atomic_compare_exchange(p, &old, &sum, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
float atomic_add(float* p, float v) { return add(p, v); }
int atomic_add(int* p, int v) { return add(p, v); }

// ------------------------------------------------------------------------------------------ races

// Who wrote a byte last in this launch, and who has read it since. Two accesses of different threads, at least one a
// write and not both atomic, are ordered only by a barrier (same block) or by __syncwarp (same warp); the other warp
// primitives order nothing, and blocks are never ordered.
struct Stamp {
    bool used = false, atomic = false;
    uint64_t block = 0;
    uint32_t thread = 0, block_era = 0, warp_era = 0;
};
struct Byte {
    uint64_t at = 0;
    Stamp write;
    // The latest read, of the readers in its era of the block; what the flags say of the others.
    Stamp read;
    bool several_blocks = false, several_warps = false, several_threads = false;
};
struct RaceTable {
    Byte* bytes = nullptr;
    size_t capacity = 0, used = 0;
};
static thread_local RaceTable races;
static thread_local bool races_wanted = false;

static Byte* entry_of(const RaceTable& table, uint64_t at) {
    size_t i = (at * 0x9E3779B97F4A7C15ull >> 24) & (table.capacity - 1);
    while (table.bytes[i].at && table.bytes[i].at != at) i = (i + 1) & (table.capacity - 1);
    return &table.bytes[i];
}
static void grow(RaceTable& table) {
    RaceTable bigger;
    bigger.capacity = table.capacity ? table.capacity * 2 : 1 << 14;
    bigger.used = table.used;
    bigger.bytes = new Byte[bigger.capacity];
    for (size_t i = 0; i < table.capacity; i++)
        if (table.bytes[i].at) *entry_of(bigger, table.bytes[i].at) = table.bytes[i];
    delete[] table.bytes;
    table = bigger;
}

static bool ordered(const Stamp& earlier, const Stamp& now) {
    if (earlier.block != now.block) return false;
    if (earlier.thread == now.thread || earlier.block_era != now.block_era) return true;
    return earlier.thread / 32 == now.thread / 32 && earlier.warp_era != now.warp_era;
}
static bool reads_ordered(const Byte& byte, const Stamp& now) {
    if (byte.several_blocks || byte.read.block != now.block) return false;
    if (byte.read.block_era != now.block_era) return true;
    if (byte.several_warps) return false;
    return byte.several_threads ? byte.read.thread / 32 == now.thread / 32 && byte.read.warp_era != now.warp_era
                                : ordered(byte.read, now);
}
static void note_read(Byte& byte, const Stamp& now) {
    if (byte.read.used && byte.read.block != now.block) {
        byte.several_blocks = true;
    } else if (byte.read.used && byte.read.block_era == now.block_era) {
        const bool same_warp = byte.read.thread / 32 == now.thread / 32;
        byte.several_warps |= !same_warp;
        if (same_warp && byte.read.warp_era == now.warp_era) byte.several_threads |= byte.read.thread != now.thread;
        else byte.several_threads = false;
    } else {
        byte.several_warps = byte.several_threads = false;
    }
    byte.read = now;
}

[[noreturn]] static void race(uint64_t at, const char* now, const char* earlier, const Stamp& other) {
    char what[192];
    snprintf(what, sizeof what, "data race at %p: %s without order after the %s by block %llu thread %u",
             reinterpret_cast<void*>(at), now, earlier, static_cast<unsigned long long>(other.block), other.thread);
    describe(what);
    stop();
}

static void record_access(Worker& w, uint64_t first, size_t bytes, bool write, bool atomic) {
    if (!races_wanted) return;
    const Thread& me = *w.current;
    const uint3 g = w.request->grid, b = w.block_index;
    const uint64_t block = (uint64_t(b.z) * g.y + b.y) * g.x + b.x;
    const Stamp now{true, atomic, block, me.number, me.block_era, me.warp_era};
    for (uint64_t at = first; at < first + bytes; at++) {
        if (races.used * 2 >= races.capacity) grow(races);
        Byte& byte = *entry_of(races, at);
        const bool shared = at - reinterpret_cast<uint64_t>(dyn_smem) < MAX_SHARED;
        // Shared memory is new to every block.
        const bool stale = shared && ((byte.write.used && byte.write.block != block) || (byte.read.used && byte.read.block != block));
        if (!byte.at) races.used++;
        if (!byte.at || stale) byte = Byte{}, byte.at = at;
        const char* what = write ? "write" : "read";
        if (byte.write.used && !(atomic && byte.write.atomic) && !ordered(byte.write, now)) race(at, what, "write", byte.write);
        if (!write) {
            note_read(byte, now);
            continue;
        }
        if (byte.read.used && !reads_ordered(byte, now)) race(at, what, "read", byte.read);
        byte.write = now;
        byte.read.used = byte.several_blocks = byte.several_warps = byte.several_threads = false;
    }
}

}  // namespace sim

// ------------------------------------------------------------------------------------------ hooks of the compiler

extern "C" {
#define HOOKS(bytes)                                                                        \
    void __tsan_read##bytes(void* p) { sim::check(p, bytes, false); }                       \
    void __tsan_write##bytes(void* p) { sim::check(p, bytes, true); }                       \
    void __tsan_unaligned_read##bytes(void* p) { sim::check(p, bytes, false); }             \
    void __tsan_unaligned_write##bytes(void* p) { sim::check(p, bytes, true); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { sim::check(p, bytes, false); }
void __tsan_write_range(void* p, size_t bytes) { sim::check(p, bytes, true); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

// ------------------------------------------------------------------------------------------ called from Rust

// Runs block number `block` of a launch on this OS thread. Returns null, or what went wrong, valid until the next call.
const char* moeplan_sim_block(const sim::Request* request, uint64_t block) {
    using namespace sim;
    static thread_local Worker own;
    if (!own.stacks) {
        void* stacks = mmap(nullptr, MAX_THREADS * STACK, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (stacks == MAP_FAILED) return "no memory for the stacks of a block";
        own.stacks = static_cast<char*>(stacks);
    }
    const uint3 grid = request->grid;
    own.request = request;
    own.count = request->block.x * request->block.y * request->block.z;
    if (request->shared_bytes > MAX_SHARED) return "more dynamic shared memory than any device has";
    if (own.count == 0 || own.count > MAX_THREADS) return "a block has 1 to 1024 threads";
    own.block_index = {unsigned(block % grid.x), unsigned(block / grid.x % grid.y), unsigned(block / grid.x / grid.y)};
    own.fault[0] = 0;
    worker = &own;
    memset(dyn_smem, 0xff, request->shared_bytes);  // uninitialised floats read as NaN
    const char* fault = run_block(own, block);
    worker = nullptr;
    return fault;
}

// From here on the blocks of this OS thread are checked for data races, as one launch.
void moeplan_sim_races(int wanted) {
    sim::races_wanted = wanted != 0;
    delete[] sim::races.bytes;
    sim::races = sim::RaceTable{};
}
}
