// Slot locations by scan: the location of a token copy in its expert's queue is the number of copies of that expert
// before it. Item n = choice * T + position, so all first choices come before all second choices; `order`, if given,
// says which token stands at a position (Batch Prioritized Routing), else position is token order.
//
// Three kernels, work O(k T + tiles E) and the same result whatever the order of blocks: count each tile of items,
// scan the counts over tiles, then walk every tile again from its start. One warp a tile.

namespace {

__device__ __forceinline__ i64 copy_of(i64 item, i64 num_tokens, int top_k, const int* order) {
    // k subtractions at most, where a 64-bit division is a subroutine.
    i64 position = item;
    int choice = 0;
    for (; position >= num_tokens; position -= num_tokens) choice++;
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

// Turns counts (tiles, E) into exclusive sums over tiles, in place, and writes the totals (E). One warp an expert, a tile a
// lane.
PLAIN_KERNEL(slot_scan)(int* __restrict__ counts, int* __restrict__ totals, i64 tiles, int num_experts) {
    for (i64 expert = global_warp(); expert < num_experts; expert += num_warps()) {
        int before = 0;
        for (i64 first = 0; first < tiles; first += WARP) {
            i64 t = first + lane();
            int here = t < tiles ? counts[t * num_experts + expert] : 0, sum = here;
#pragma unroll
            for (int distance = 1; distance < WARP; distance *= 2) {
                int below = __shfl_up_sync(ALL_LANES, sum, distance);
                if (lane() >= distance) sum += below;
            }
            if (t < tiles) counts[t * num_experts + expert] = before + sum - here;
            before += __shfl_sync(ALL_LANES, sum, WARP - 1);
        }
        if (lane() == 0) totals[expert] = before;
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

// places (T, k): element offset of each copy's slot in the dispatch buffer, -1 if it is dropped.
//
// An expert takes `limit` copies. Its rows are split over `groups` row groups: padded buffers fill one group after the
// other, dropless ones (`own_group` >= 0) use one only. rows (E, groups) are the slots of each; they are cut into `degree`
// chunks: firsts (degree, E, groups) say which slot each begins with, bases (degree, E, groups) where that one lies.
PLAIN_KERNEL(slot_places)(const int* __restrict__ experts, const int* __restrict__ locations,
                          const i64* __restrict__ rows, const i64* __restrict__ firsts,
                          const i64* __restrict__ bases, i64* __restrict__ places, i64 copies, int num_experts, int groups,
                          int degree, i64 limit, int own_group, i64 model_dim) {
    for (i64 copy = global_thread(); copy < copies; copy += num_threads()) {
        i64 expert = experts[copy], location = locations[copy], place = -1;
        if (location < limit) {
            i64 group = own_group, index = location;
            if (own_group < 0) {
                i64 each = rows[expert * groups];
                group = location / each;
                index = location % each;
            }
            i64 slots = group < groups ? rows[expert * groups + group] : 0;
            if (index < slots) {
                // The last chunk that begins at the slot or before it: empty ones begin where the next does.
                i64 cell = expert * groups + group, cells = (i64)num_experts * groups;
                for (int next = 1; next < degree && firsts[cell + cells] <= index; next++) cell += cells;
                place = bases[cell] + (index - firsts[cell]) * model_dim;
            }
        }
        places[copy] = place;
    }
}
