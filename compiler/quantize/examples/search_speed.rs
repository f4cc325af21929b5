//! Solve times.
use hawqc_quantize::search::*;
use std::time::Instant;

struct Rng(u64);
impl Rng {
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

fn random(seed: u64, layers: usize, choices: usize, limits: usize, share: f64, correlated: bool) -> Problem {
    let mut rng = Rng(seed * 7919 + 12345);
    for _ in 0..10 {
        rng.next();
    }
    let layer = |i: usize, rng: &mut Rng| {
        let size: Vec<f64> = (0..limits).map(|_| if correlated { (rng.next() * 4.0).exp() } else { 1.0 }).collect();
        let s = (rng.next() * 6.0).exp();
        let choices = (0..choices)
            .map(|c| {
                if correlated {
                    let f = 1.0 - c as f64 / choices as f64;
                    Choice {
                        label: c.to_string(),
                        cost: s * (0.1 + rng.next()) * 4f64.powi(c as i32),
                        uses: size.iter().map(|z| z * f * (0.9 + 0.2 * rng.next())).collect(),
                    }
                } else {
                    Choice { label: c.to_string(), cost: rng.next(), uses: (0..limits).map(|_| rng.next()).collect() }
                }
            })
            .collect();
        Layer { name: format!("l{i}"), choices }
    };
    let layers: Vec<Layer> = (0..layers).map(|i| layer(i, &mut rng)).collect();
    let limits = (0..limits)
        .map(|d| {
            let (lo, hi) = layers.iter().fold((0.0, 0.0), |(lo, hi), l| {
                let u = l.choices.iter().map(|c| c.uses[d]);
                (lo + u.clone().fold(f64::MAX, f64::min), hi + u.fold(f64::MIN, f64::max))
            });
            Limit { name: format!("d{d}"), fixed: 0.0, most: lo + share * (hi - lo) }
        })
        .collect();
    Problem { layers, limits, ..Problem::default() }
}

fn main() {
    for correlated in [false, true] {
        for (n, c, m) in [(54, 2, 3), (54, 3, 3), (100, 4, 3), (300, 6, 3)] {
            for seed in 0..4 {
                for share in [0.3, 0.5] {
                    let p = random(seed, n, c, m, share, correlated);
                    let t = Instant::now();
                    let r = solve(&p, SearchOptions { max_steps: 300_000_000, ..Default::default() });
                    match r {
                        Ok(r) => println!(
                            "{n}x{c}x{m} corr={correlated} share={share} {:.4}s cost {:.6} relaxed {:.6} gap {:.2e} proven {} steps {}",
                            t.elapsed().as_secs_f64(),
                            r.best[0].cost,
                            r.relaxed,
                            r.gap(),
                            r.proven,
                            r.steps
                        ),
                        Err(e) => println!(
                            "{n}x{c}x{m} corr={correlated} share={share} {:.4}s {e}",
                            t.elapsed().as_secs_f64()
                        ),
                    }
                }
            }
        }
    }
}
