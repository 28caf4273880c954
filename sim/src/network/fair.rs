//! Exact max-min fair draining of classes of equal flows, event by event.
//!
//! A class stands for many flows that look alike to every link; `weight` says how many of them
//! cross a link. With one flow a class and every weight 1 this is the naive oracle
//! (`reference`); with the few classes of a symmetric collective it is its exact quotient.

/// Flows that all have the same bytes, cap and surroundings.
pub(super) struct FlowClass {
    /// Bytes of one flow.
    pub(super) bytes: f64,
    /// The most one flow gets, bytes/s; may be infinite.
    pub(super) cap: f64,
    /// `(link, weight)`: how many flows of the class cross the link.
    pub(super) crosses: Vec<(usize, f64)>,
}

/// Two instants or rates closer than this fraction are the same: rounding, not an event.
const SAME: f64 = 1.0 + 1e-12;

/// When each class has sent its last byte, in seconds.
pub(super) fn drain(capacity: &[f64], classes: &[FlowClass]) -> Vec<f64> {
    let mut crossing = vec![Vec::new(); capacity.len()];
    for (c, class) in classes.iter().enumerate() {
        for &(link, _) in &class.crosses {
            crossing[link].push(c);
        }
    }
    let mut by_cap: Vec<usize> = (0..classes.len()).collect();
    by_cap.sort_by(|&a, &b| classes[a].cap.total_cmp(&classes[b].cap));

    let mut left: Vec<f64> = classes.iter().map(|class| class.bytes).collect();
    let mut finish = vec![0.0; classes.len()];
    let mut now = 0.0;
    loop {
        let active: Vec<bool> = left.iter().map(|&bytes| bytes > 0.0).collect();
        if !active.contains(&true) {
            return finish;
        }
        let rates = fair_rates(capacity, classes, &crossing, &by_cap, &active);
        let times = || left.iter().zip(&rates).map(|(bytes, rate)| bytes / rate);
        let step = times()
            .zip(&active)
            .filter_map(|(time, &on)| on.then_some(time))
            .fold(f64::INFINITY, f64::min);
        now += step;
        for c in (0..classes.len()).filter(|&c| active[c]) {
            if left[c] <= rates[c] * step * SAME {
                (left[c], finish[c]) = (0.0, now);
            } else {
                left[c] -= rates[c] * step;
            }
        }
    }
}

/// Progressive filling: all rates rise together; who meets a full link or its cap stays there.
fn fair_rates(
    capacity: &[f64],
    classes: &[FlowClass],
    crossing: &[Vec<usize>],
    by_cap: &[usize],
    active: &[bool],
) -> Vec<f64> {
    let mut room = capacity.to_vec();
    let mut weight = vec![0.0; capacity.len()];
    let mut rising = active.to_vec();
    for class in classes
        .iter()
        .zip(active)
        .filter_map(|(c, &on)| on.then_some(c))
    {
        for &(link, w) in &class.crosses {
            weight[link] += w;
        }
    }
    let mut rates = vec![0.0; classes.len()];
    let mut next_cap = 0;
    loop {
        while next_cap < by_cap.len() && !rising[by_cap[next_cap]] {
            next_cap += 1;
        }
        let Some(&capped) = by_cap.get(next_cap) else {
            return rates;
        };
        let fullest = (0..capacity.len())
            .filter(|&link| weight[link] > 0.0)
            .map(|link| (room[link].max(0.0) / weight[link], link))
            .min_by(|a, b| a.0.total_cmp(&b.0));
        let (level, stopped) = match fullest {
            Some((level, link)) if level <= classes[capped].cap => (level, &crossing[link][..]),
            Some(_) | None => (classes[capped].cap, &by_cap[next_cap..=next_cap]),
        };
        for &c in stopped {
            if std::mem::take(&mut rising[c]) {
                rates[c] = level;
                for &(link, w) in &classes[c].crosses {
                    room[link] -= w * level;
                    weight[link] -= w;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(bytes: f64, cap: f64, links: &[usize]) -> FlowClass {
        FlowClass {
            bytes,
            cap,
            crosses: links.iter().map(|&link| (link, 1.0)).collect(),
        }
    }

    fn check(capacity: &[f64], flows: &[FlowClass], expected: &[f64]) {
        for (got, want) in drain(capacity, flows).iter().zip(expected) {
            assert!((got - want).abs() < 1e-9 * want.max(1.0), "{got} != {want}");
        }
    }

    #[test]
    fn equal_flows_share_a_link() {
        let flows = [
            flow(10.0, f64::INFINITY, &[0]),
            flow(10.0, f64::INFINITY, &[0]),
        ];
        check(&[2.0], &flows, &[10.0, 10.0]);
    }

    #[test]
    fn a_capped_flow_leaves_the_rest_to_others() {
        // Cap 1 of 4: the other has 3, then both finish: 6/3 = 2 s; 10 bytes at 1 take 10 s.
        let flows = [flow(10.0, 1.0, &[0]), flow(6.0, f64::INFINITY, &[0])];
        check(&[4.0], &flows, &[10.0, 2.0]);
    }

    #[test]
    fn the_textbook_line_of_two_links() {
        // Long flow over both links of 1 and 2: link 0 holds it and its neighbour at 1/2, the
        // other has 3/2. After 2 s all of them are out of 1, 1 and 3 bytes.
        let none = f64::INFINITY;
        let flows = [
            flow(1.0, none, &[0, 1]),
            flow(1.0, none, &[0]),
            flow(3.0, none, &[1]),
        ];
        check(&[1.0, 2.0], &flows, &[2.0, 2.0, 2.0]);
    }

    #[test]
    fn a_finished_flow_gives_its_share_back() {
        // 1 and 3 bytes on 1 byte/s: 2 s for the first, then 2 bytes at full speed.
        let flows = [
            flow(1.0, f64::INFINITY, &[0]),
            flow(3.0, f64::INFINITY, &[0]),
        ];
        check(&[1.0], &flows, &[2.0, 4.0]);
    }
}
