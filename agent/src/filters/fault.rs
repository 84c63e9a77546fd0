//! Faults on purpose: a share of the requests is held up, a share is answered with an error. Each is drawn by itself, so some requests
//! are held up and then answered so.

use std::time::Duration;

use http::StatusCode;
use rand::Rng;
use switchyard_proto::v1;

use super::response::status;
use crate::refusal::{Reason, Refusal};

/// A share of the requests, in parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

/// All of them.
const ALL: u32 = 1_000_000;

impl Share {
    /// From parts per million; more than all is all.
    pub fn of_ppm(ppm: u32) -> Self {
        Self(ppm.min(ALL))
    }

    /// Whether this request belongs to it.
    pub fn draw(self, rng: &mut impl Rng) -> bool {
        match self.0 {
            0 => false,
            ALL => true,
            share => rng.random_range(0..ALL) < share,
        }
    }

    /// In percent.
    pub fn percent(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl std::fmt::Display for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}%", self.percent())
    }
}

/// What goes wrong, and how often.
#[derive(Debug)]
pub struct Fault {
    delay: Option<(Duration, Share)>,
    abort: Option<(StatusCode, Share)>,
}

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drawn {
    /// It is held up for so long ...
    pub delay: Option<Duration>,
    /// ... and then answered with this.
    pub abort: Option<StatusCode>,
}

impl Fault {
    /// From the wire.
    ///
    /// # Errors
    /// A status that is none.
    pub fn compile(wire: &v1::Fault) -> Result<Self, String> {
        let delay = wire.delay.map(|d| (Duration::from_millis(d.duration_ms), Share::of_ppm(d.ppm)));
        let abort = wire.abort.map(|a| Ok::<_, String>((status(a.status)?, Share::of_ppm(a.ppm)))).transpose()?;
        Ok(Self { delay, abort })
    }

    /// Draws for one request.
    pub fn draw(&self, rng: &mut impl Rng) -> Drawn {
        Drawn {
            delay: self.delay.filter(|(_, share)| share.draw(rng)).map(|(delay, _)| delay),
            abort: self.abort.filter(|(_, share)| share.draw(rng)).map(|(status, _)| status),
        }
    }

    /// The error that is answered, and for which share of the requests.
    pub fn aborts(&self) -> Option<(Refusal, Share)> {
        self.abort.map(|(status, share)| (abort(status), share))
    }
}

/// The answer of this status; to a gRPC caller it is the gRPC status that stands for it.
pub fn abort(status: StatusCode) -> Refusal {
    let detail = "the rule answers a share of the requests so, to try how callers take it";
    Refusal::new(Reason::Fault, detail).with_status(status)
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let delay = self.delay.map(|(delay, share)| format!("{share} held up for {delay:?}"));
        let abort = self.abort.map(|(status, share)| format!("{share} answered {}", status.as_u16()));
        f.write_str(&delay.into_iter().chain(abort).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    fn fault(delay: Option<u32>, abort: Option<u32>) -> Fault {
        Fault::compile(&v1::Fault {
            delay: delay.map(|ppm| v1::FaultDelay { duration_ms: 2000, ppm }),
            abort: abort.map(|ppm| v1::FaultAbort { status: 503, ppm }),
        })
        .unwrap()
    }

    #[test]
    fn none_and_all_are_exact() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..1000 {
            assert_eq!(fault(Some(0), Some(0)).draw(&mut rng), Drawn::default());
            let drawn = fault(Some(ALL), Some(ALL)).draw(&mut rng);
            assert_eq!(
                drawn,
                Drawn { delay: Some(Duration::from_secs(2)), abort: Some(StatusCode::SERVICE_UNAVAILABLE) }
            );
        }
    }

    #[test]
    fn delay_and_abort_are_drawn_by_themselves() {
        let mut rng = SmallRng::seed_from_u64(2);
        let fault = fault(Some(500_000), Some(200_000));
        let mut counts = [0; 4];
        for _ in 0..100_000 {
            let drawn = fault.draw(&mut rng);
            counts[usize::from(drawn.delay.is_some()) * 2 + usize::from(drawn.abort.is_some())] += 1;
        }
        // Ten standard deviations at most, and the seed is the same each time.
        for (count, share) in counts.into_iter().zip([0.4, 0.1, 0.4, 0.1]) {
            assert!((f64::from(count) - share * 100_000.0).abs() < 1600.0, "{counts:?}");
        }
    }

    #[test]
    fn a_grpc_caller_gets_the_grpc_status_that_stands_for_it() {
        for (http, grpc) in
            [(503, "14"), (429, "14"), (401, "16"), (403, "7"), (404, "12"), (400, "13"), (500, "2"), (200, "2")]
        {
            let refusal = abort(StatusCode::from_u16(http).unwrap());
            let reply = refusal.reply(true);
            assert_eq!(
                (reply.status().as_u16(), reply.headers()["grpc-status"].to_str().unwrap()),
                (200, grpc),
                "{http}"
            );
            let reply = refusal.reply(false);
            assert_eq!(
                (reply.status().as_u16(), &reply.headers()["x-switchyard-reason"]),
                (http, &"fault".parse().unwrap())
            );
        }
    }
}
