//! The routing under which ai-dynamo/aiconfigator timed its MoE table, rebuilt.
//!
//! Expert loads are drawn from a power law x^-a between 1 and 0.8 tokens (0.01 and 2 when there
//! are more experts than rows), scaled to `tokens * top_k` rows; the rank with the most rows is
//! timed. Here the draws are the quantiles of that law and the busiest rank is the median of
//! several shuffles, so that the result is a function and near the middle of what they drew.

/// Shuffles of the experts over the ranks of which the median is taken.
const SHUFFLES: u64 = 15;

/// Rows of each expert of the busiest of `ranks` expert-parallel ranks.
pub(super) fn busiest_rank(
    tokens: u64,
    experts: usize,
    top_k: u64,
    exponent: f64,
    ranks: usize,
) -> Vec<u64> {
    let mut loads = quantiles(tokens as f64, experts, top_k as f64, exponent);
    let rows = tokens * top_k;
    if ranks <= 1 {
        loads.reverse();
        return settle(&loads, rows);
    }
    let mut busiest: Vec<Vec<u64>> = (0..SHUFFLES)
        .map(|seed| {
            let mut shuffled = loads.clone();
            shuffle(&mut shuffled, seed);
            let settled = settle(&shuffled, rows);
            settled
                .chunks(experts / ranks)
                .max_by_key(|rank| rank.iter().sum::<u64>())
                .map(<[u64]>::to_vec)
                .unwrap_or_default()
        })
        .collect();
    busiest.sort_by_key(|rank| rank.iter().sum::<u64>());
    busiest.swap_remove(busiest.len() / 2)
}

/// Ascending expected loads, none above `tokens`: a token goes to an expert at most once.
fn quantiles(tokens: f64, experts: usize, top_k: f64, exponent: f64) -> Vec<f64> {
    let (low, high): (f64, f64) = if tokens * top_k > experts as f64 {
        (1.0, 0.8 * tokens)
    } else {
        (0.01, 2.0)
    };
    let power = 1.0 - exponent;
    let (low, high) = (low.powf(power), high.powf(power));
    let mut loads: Vec<f64> = (0..experts)
        .map(|i| {
            let share = (i as f64 + 0.5) / experts as f64;
            ((high - low) * share + low).powf(1.0 / power)
        })
        .collect();
    let scale = tokens * top_k / loads.iter().sum::<f64>();
    loads.iter_mut().for_each(|load| *load *= scale);
    // Clipping hands the excess to the others, which may then exceed the limit in turn.
    for _ in 0..20 {
        let excess: f64 = loads.iter().map(|load| (load - tokens).max(0.0)).sum();
        if excess < 1e-9 {
            break;
        }
        let free: f64 = loads.iter().filter(|load| **load < tokens).sum();
        for load in &mut loads {
            *load = if *load < tokens {
                *load * (1.0 + excess / free)
            } else {
                tokens
            };
        }
    }
    loads
}

/// Rounds to whole rows that sum to `rows`; the first experts get what rounding lost.
fn settle(loads: &[f64], rows: u64) -> Vec<u64> {
    let mut settled: Vec<u64> = loads.iter().map(|load| load.round() as u64).collect();
    let sum: u64 = settled.iter().sum();
    let count = settled.len() as u64;
    if sum < rows {
        let (each, rest) = ((rows - sum) / count, (rows - sum) % count);
        for (i, load) in (0u64..).zip(&mut settled) {
            *load += each + u64::from(i < rest);
        }
    } else {
        let mut surplus = sum - rows;
        let mut order: Vec<usize> = (0..settled.len()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(settled[*i]));
        for i in order.into_iter().cycle().take(loads.len() * 4) {
            if surplus > 0 && settled[i] > 0 {
                settled[i] -= 1;
                surplus -= 1;
            }
        }
    }
    settled
}

/// Fisher-Yates with splitmix64.
fn shuffle(values: &mut [f64], seed: u64) {
    let mut state = seed;
    for i in (1..values.len()).rev() {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let random = z ^ (z >> 31);
        values.swap(i, (random % (i as u64 + 1)) as usize);
    }
}
