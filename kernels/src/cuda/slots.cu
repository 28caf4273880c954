// Slot locations by scan: the location of a token copy in its expert's queue is the number of copies of that expert
// before it. Item n = choice * T + position, so all first choices come before all second choices; `order`, if given,
// says which token stands at a position (Batch Prioritized Routing), else position is token order.
//
// Three kernels, work O(k T + tiles E) and the same result whatever the order of blocks: count each tile of items,
// scan the counts over tiles, then walk every tile again from its start. One warp a tile.

namespace {

__device__ __forceinline__ i64 copy_of(i64 item, i64 num_tokens, int top_k, const int* order) {
    i64 choice = item / num_tokens, position = item % num_tokens;
    i64 token = order ? order[position] : position;
    return token * top_k + choice;
}

// Lanes of this warp that hold the same expert; lanes without an item pass -1.
__device__ __forceinline__ unsigned peers_of(int expert) { return __match_any_sync(ALL_LANES, expert); }

}  // namespace

// counts (tiles, E), zeroed before: copies of each expert in each tile, over the first `choices` of k choices.
PLAIN_KERNEL(slot_count)(const int* __restrict__ experts, const int* __restrict__ order, int* __restrict__ counts,
                         i64 num_tokens, int top_k, int choices, int num_experts, int tile) {
    i64 items = num_tokens * choices, tiles = (items + tile - 1) / tile;
    for (i64 t = global_warp(); t < tiles; t += num_warps()) {
        int* count = counts + t * num_experts;
        for (i64 base = t * tile; base < min((t + 1) * tile, items); base += WARP) {
            i64 item = base + lane();
            int expert = item < items ? experts[copy_of(item, num_tokens, top_k, order)] : -1;
            unsigned peers = peers_of(expert);
            if (expert >= 0 && lane() == __ffs(peers) - 1) count[expert] += __popc(peers);
            __syncwarp();
        }
    }
}

// Turns counts (tiles, E) into exclusive sums over tiles, in place, and writes the totals (E). One thread an expert:
// neighbouring threads read neighbouring numbers.
PLAIN_KERNEL(slot_scan)(int* __restrict__ counts, int* __restrict__ totals, i64 tiles, int num_experts) {
    for (i64 expert = global_thread(); expert < num_experts; expert += num_threads()) {
        int before = 0;
        for (i64 t = 0; t < tiles; t++) {
            int here = counts[t * num_experts + expert];
            counts[t * num_experts + expert] = before;
            before += here;
        }
        totals[expert] = before;
    }
}

// locations (T, k) from the scanned counts, which are used up: each tile advances its own row.
PLAIN_KERNEL(slot_assign)(const int* __restrict__ experts, const int* __restrict__ order, int* __restrict__ counts,
                          int* __restrict__ locations, i64 num_tokens, int top_k, int num_experts, int tile) {
    i64 items = num_tokens * top_k, tiles = (items + tile - 1) / tile;
    for (i64 t = global_warp(); t < tiles; t += num_warps()) {
        int* count = counts + t * num_experts;
        for (i64 base = t * tile; base < min((t + 1) * tile, items); base += WARP) {
            i64 item = base + lane();
            i64 copy = item < items ? copy_of(item, num_tokens, top_k, order) : 0;
            int expert = item < items ? experts[copy] : -1;
            unsigned peers = peers_of(expert);
            int first = __ffs(peers) - 1;
            int start = 0;
            if (expert >= 0 && lane() == first) {
                start = count[expert];
                count[expert] = start + __popc(peers);
            }
            start = __shfl_sync(ALL_LANES, start, first);
            if (expert >= 0) locations[copy] = start + __popc(peers & ((1u << lane()) - 1));
            __syncwarp();
        }
    }
}

// rows (T, k): where each copy's slot lies in the dispatch buffer, -1 if it is dropped.
// Padded: an expert has `capacity` slots, cut into chunks of `chunk_rows`, chunk after chunk, each (E, chunk_rows).
// Dropless (`starts` (E) given): the rows of expert e follow one another from starts[e] on; nothing is dropped.
PLAIN_KERNEL(slot_rows)(const int* __restrict__ experts, const int* __restrict__ locations,
                        const i64* __restrict__ starts, int* __restrict__ rows, i64 copies, int num_experts,
                        i64 capacity, i64 chunk_rows) {
    for (i64 copy = global_thread(); copy < copies; copy += num_threads()) {
        i64 expert = experts[copy], location = locations[copy];
        i64 row = -1;
        if (starts) {
            row = starts[expert] + location;
        } else if (location < capacity) {
            i64 chunk = location / chunk_rows;
            row = (chunk * num_experts + expert) * chunk_rows + location % chunk_rows;
        }
        rows[copy] = (int)row;
    }
}
