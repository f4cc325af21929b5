//! How a kernel's work is cut into units.
//!
//! A unit is a part of an image's rows by a part of the blocks of channels. Parts are as even as can be, and units follow each other
//! as their results lie in memory: image by image, rows by rows, and for the same rows blocks by blocks. Tasks take neighbouring
//! units, as many as any other task or one fewer.

/// Work, in element operations of a portable kernel, that is worth handing to another thread: some microseconds.
pub const TASK_WORK: usize = 40_000;
/// Multiply-accumulates of assembled kernels that take as long as an element operation.
pub const DIRECT_MACS_PER_WORK: usize = 16;
pub const DEPTHWISE_MACS_PER_WORK: usize = 4;

/// `all` things in `count` parts: as many as in any other part, or one fewer. Part `i` begins at `ceil(i * all / count)`, so the
/// first is one of the larger and the last one of the smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    pub all: usize,
    pub count: usize,
}

impl Parts {
    /// Few parts of at most `most` things; `all` and `most` are at least 1.
    pub fn of(all: usize, most: usize) -> Parts {
        Parts { all, count: all.div_ceil(most) }
    }

    /// Where a part begins.
    pub fn begin(self, part: usize) -> usize {
        (part * self.all).div_ceil(self.count)
    }

    /// Things of the largest part, and how many parts have so many; of the others, which have one fewer.
    pub fn sizes(self) -> [(usize, usize); 2] {
        let (size, larger) = (self.all / self.count, self.all % self.count);
        if larger == 0 { [(size, self.count), (size, 0)] } else { [(size + 1, larger), (size, self.count - larger)] }
    }

    /// Things of the largest part.
    pub fn largest(self) -> usize {
        self.all.div_ceil(self.count)
    }
}

/// The units of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Units {
    pub images: usize,
    pub rows: Parts,
    pub blocks: Parts,
}

impl Units {
    pub fn count(self) -> usize {
        self.images * self.rows.count * self.blocks.count
    }

    /// Work of the units before `unit`, in rows times vectors, where a block has `nr` of all the `vectors`.
    fn work_before(self, unit: usize, (nr, vectors): (usize, usize)) -> usize {
        let (row_unit, part) = (unit / self.blocks.count, unit % self.blocks.count);
        let (image, row_part) = (row_unit / self.rows.count, row_unit % self.rows.count);
        let first = self.rows.begin(row_part);
        let rows = self.rows.begin(row_part + 1) - first;
        (image * self.rows.all + first) * vectors + rows * vectors.min(self.blocks.begin(part) * nr)
    }

    /// How well two threads, and less important four, share the units: 1 where all are busy to the end.
    pub(crate) fn balance(self, (nr, vectors): (usize, usize)) -> f64 {
        let busy = |threads: usize| {
            let tasks = Parts { all: self.count(), count: threads };
            let before = |task: usize| self.work_before(tasks.begin(task), (nr, vectors));
            let longest = (0..threads).map(|task| before(task + 1) - before(task)).max().unwrap_or(0);
            (self.images * self.rows.all * vectors) as f64 / (threads * longest.max(1)) as f64
        };
        (2.0 * busy(2) + busy(4)) / 3.0
    }
}

/// The time that matters of `ns` on one thread, shared so well: threads count less than the work itself, which one thread does too.
pub(crate) fn shared_ns(ns: f64, balance: f64) -> f64 {
    ns * (3.0 + 1.0 / balance) / 4.0
}

/// `first`, or one of the others that is shared better, earlier ones rather than later ones.
pub(crate) fn balanced<T: Copy>(first: T, others: impl IntoIterator<Item = T>, balance: impl Fn(T) -> f64) -> T {
    let better = |best: T, other: T| if balance(other) > balance(best) + BALANCE_MATTERS { other } else { best };
    others.into_iter().fold(first, better)
}

/// The largest parts of `all` from half of `size` to twice as much, at most `most`: larger ones first, then smaller ones, the
/// nearest first.
pub(crate) fn near(all: usize, size: usize, most: usize) -> impl Iterator<Item = usize> {
    let sizes = (size + 1..=(2 * size).min(most)).chain((size.div_ceil(2)..size).rev());
    sizes.filter(move |&size| Parts::of(all, size).largest() == size)
}

/// Differences in [`Units::balance`] that do not count.
const BALANCE_MATTERS: f64 = 0.08;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_even_and_all() {
        for all in 1..40 {
            for most in 1..45 {
                let parts = Parts::of(all, most);
                let sizes: Vec<usize> = (0..parts.count).map(|i| parts.begin(i + 1) - parts.begin(i)).collect();
                assert_eq!((parts.begin(0), sizes.iter().sum::<usize>()), (0, all));
                let [(large, larger), (small, smaller)] = parts.sizes();
                assert!(large == parts.largest() && large <= most && large - small <= 1 && small > 0);
                assert_eq!(
                    sizes.iter().filter(|&&size| size == large).count(),
                    larger + if large == small { smaller } else { 0 }
                );
                assert!(sizes.iter().all(|&size| size == large || size == small));
            }
        }
    }

    /// Against adding up unit by unit.
    #[test]
    fn balance_counts_every_unit() {
        let cases: [(usize, usize, usize, usize, usize); 4] =
            [(1, 7, 2, 3, 32), (2, 3, 4, 3, 10), (1, 1, 1, 4, 16), (3, 5, 3, 1, 4)];
        for (images, rows, blocks, nr, vectors) in cases {
            let units = Units {
                images,
                rows: Parts::of(14, 14usize.div_ceil(rows)),
                blocks: Parts::of(vectors.div_ceil(nr), blocks),
            };
            let mut all = Vec::new();
            for _ in 0..images {
                for row in 0..units.rows.count {
                    for part in 0..units.blocks.count {
                        let rows = units.rows.begin(row + 1) - units.rows.begin(row);
                        let [first, end] = [part, part + 1].map(|part| vectors.min(units.blocks.begin(part) * nr));
                        all.push(rows * (end - first));
                    }
                }
            }
            assert_eq!(all.len(), units.count());
            let busy = |threads: usize| {
                let begin = |task: usize| (task * all.len()).div_ceil(threads);
                let share = |task: usize| all[begin(task)..begin(task + 1)].iter().sum();
                let longest: usize = (0..threads).map(share).max().unwrap();
                all.iter().sum::<usize>() as f64 / (threads * longest) as f64
            };
            assert_eq!(units.balance((nr, vectors)), (2.0 * busy(2) + busy(4)) / 3.0);
        }
    }
}
