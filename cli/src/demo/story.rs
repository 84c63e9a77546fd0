//! What happens in the demo, in order, and what is claimed of it. Each act changes something as a user would (a file, a
//! service), watches, and compares what it saw with what should have been seen.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde_json::Value;
use switchyard_crds::values::Percent;

use super::load::{Caller, Load, Tally};
use super::manifests::Folder;
use super::samples::{COUNT, Instance};
use super::view::{Frame, Row, View};

/// The shares of v2 in percent, one after the other.
const STEPS: [u32; 3] = [5, 20, 50];

/// How long each share is measured: 1,200 requests.
const MEASURED: Duration = Duration::from_secs(6);

/// How long a broken instance is watched while it is out; shorter than its circuit's timeout.
const OUT: Duration = Duration::from_secs(2);

/// Whatever takes longer to come did not come.
const PATIENCE: Duration = Duration::from_secs(12);

/// How often the agent is asked and the picture drawn.
const TICK: Duration = Duration::from_millis(100);

/// Over how many ticks rates are averaged.
const RATE_TICKS: usize = 20;

/// Standard deviations that a fair split may be off: chance exceeds them once in 15,000 measurements.
const DEVIATIONS: f64 = 4.0;

/// The instance that breaks, and the one that becomes unreliable: both of v2.
const BROKEN: usize = 3;
const UNRELIABLE: usize = 2;

/// All that the story plays with.
#[derive(Debug)]
pub(crate) struct Stage {
    folder: Folder,
    instances: [Instance; COUNT],
    load: Load,
    caller: Caller,
    admin: SocketAddr,
    view: View,
    began: Instant,
    v2_percent: u32,
    /// What callers saw at the latest ticks.
    lately: VecDeque<(Instant, Tally)>,
    circuits: [Circuit; COUNT],
    unkept: Vec<String>,
}

/// What the agent says of an instance's circuit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Circuit {
    state: String,
    reason: String,
}

impl Stage {
    /// Waits until the proxy answers, and starts the load.
    ///
    /// # Errors
    /// If it never answers.
    pub(crate) async fn set(
        folder: Folder,
        instances: [Instance; COUNT],
        proxy: SocketAddr,
        admin: SocketAddr,
        view: View,
    ) -> anyhow::Result<Self> {
        let (caller, began) = (Caller::default(), Instant::now());
        while let Err(error) = caller.ask_service(proxy).await {
            if began.elapsed() > PATIENCE {
                return Err(error).with_context(|| format!("the proxy on {proxy} does not answer for the samples"));
            }
            tokio::time::sleep(TICK).await;
        }
        let load = Load::start(proxy, &instances);
        Ok(Self {
            folder,
            instances,
            load,
            caller,
            admin,
            view,
            began,
            v2_percent: 0,
            lately: VecDeque::new(),
            circuits: Default::default(),
            unkept: Vec::new(),
        })
    }

    /// Plays all of it; gives what did not happen as claimed.
    ///
    /// # Errors
    /// If the rule's file cannot be written.
    pub(crate) async fn play(mut self) -> anyhow::Result<Vec<String>> {
        self.view.head("A canary: the rule's weights are edited on disk");
        for percent in STEPS {
            self.move_canary(percent).await?;
        }
        self.view.head("A circuit: an instance of v2 breaks, is taken out, and comes back");
        self.break_one().await;
        self.view.head("Retries: an instance of v2 fails three requests in ten, and nobody notices");
        self.make_one_unreliable().await;
        self.sum_up();
        Ok(self.unkept)
    }

    async fn move_canary(&mut self, percent: u32) -> anyhow::Result<()> {
        self.folder.set_weight(percent)?;
        self.v2_percent = percent;
        let saved = Instant::now();
        let in_force = self.wait_for_weight(percent).await;
        let after = saved.elapsed().as_millis();
        if !in_force {
            self.claim(false, format!("v2 {percent} %: not in force {after} ms after the file was saved"));
            return Ok(());
        }
        let seen = self.watch(MEASURED).await;
        let (all, v2) = (seen.answered.iter().sum::<u64>() as f64, of_v2(&self.instances, &seen) as f64);
        let wanted = f64::from(percent) / 100.0;
        let fair = DEVIATIONS * (all * wanted * (1.0 - wanted)).sqrt();
        let held = all > 0.0 && (v2 - all * wanted).abs() <= fair;
        let share = 100.0 * v2 / all.max(1.0);
        let text =
            format!("v2 {percent} %: in force after {after} ms; {v2} of {all} requests went there, {share:.1} %");
        self.claim(held, if held { text } else { format!("{text}, which is not chance") });
        Ok(())
    }

    async fn break_one(&mut self) {
        let (before, name) = (self.load.tally(), self.instances[BROKEN].name);
        let failed = self.instances[BROKEN].knobs.failed();
        self.instances[BROKEN].knobs.set_fail(Percent::whole(100));
        self.view.say(&format!("      {name} now fails every request"));
        let broken = Instant::now();
        let out = self.wait_for(|stage| stage.circuits[BROKEN].state == "open").await;
        let tries = self.instances[BROKEN].knobs.failed() - failed;
        let (took, reason) = (broken.elapsed().as_millis(), self.circuits[BROKEN].reason.clone());
        self.claim(
            out,
            match out {
                true => format!("{name} is taken out after {took} ms and {tries} failed tries: {reason}"),
                false => format!("{name} is not taken out, after {took} ms and {tries} failed tries"),
            },
        );

        let asked = self.instances[BROKEN].knobs.asked();
        self.watch(OUT).await;
        let asked = self.instances[BROKEN].knobs.asked() - asked;
        // On a machine that stalls, the first probe may come before the mending.
        self.claim(out && asked <= 1, format!("while it is out, {asked} requests reach it"));

        self.instances[BROKEN].knobs.set_fail(Percent::whole(0));
        self.view.say(&format!("      {name} is mended"));
        let (mended, answered) = (Instant::now(), self.load.tally().answered[BROKEN]);
        let back = self.wait_for(|stage| stage.circuits[BROKEN].state == "closed").await;
        let took = mended.elapsed().as_millis();
        self.watch(Duration::from_secs(1)).await;
        let answers = self.load.tally().answered[BROKEN] - answered;
        self.claim(
            out && back && answers > 0,
            match out && back {
                true => format!("{name} is probed and back after {took} ms, and has answered {answers} requests since"),
                false => format!("{name} is not back {took} ms later, or never was out"),
            },
        );

        let seen = self.load.tally().since(&before);
        self.claim(seen.errors == 0, format!("callers saw {} errors in {} requests", seen.errors, seen.ended));
    }

    async fn make_one_unreliable(&mut self) {
        let knobs = std::sync::Arc::clone(&self.instances[UNRELIABLE].knobs);
        let failed = knobs.failed();
        knobs.set_fail(Percent::whole(30));
        let seen = self.watch(MEASURED).await;
        knobs.set_fail(Percent::whole(0));
        let (name, failed) = (self.instances[UNRELIABLE].name, knobs.failed() - failed);
        let Tally { ended, errors, rescued, .. } = seen;
        let text = format!(
            "{failed} tries failed at {name}; {rescued} requests were rescued by a retry, and callers saw {errors} errors in \
             {ended} requests"
        );
        // It is asked less often for it, and must have failed all the same, or there was nothing to hide.
        const FEW: u64 = 3;
        self.claim(errors == 0 && failed >= FEW && rescued * 10 >= failed * 9, text);
    }

    fn sum_up(&mut self) {
        let (seen, failed) = (self.load.tally(), self.failed_tries());
        self.view.head("In all");
        let text = format!(
            "{} requests in {} s: {failed} tries failed, and callers saw {} errors",
            seen.ended,
            self.began.elapsed().as_secs(),
            seen.errors
        );
        self.claim(seen.ended > 0 && seen.errors == 0, text);
        if let Some(error) = self.load.first_error() {
            self.view.say(&format!("      the first error was: {error}"));
        }
    }

    /// Says what was claimed, and remembers it if it was not so.
    fn claim(&mut self, held: bool, text: String) {
        self.view.verdict(held, &text);
        if !held {
            self.unkept.push(text);
        }
    }

    fn failed_tries(&self) -> u64 {
        self.instances.iter().map(|instance| instance.knobs.failed()).sum()
    }

    /// Lets time pass; gives what callers saw in it.
    async fn watch(&mut self, duration: Duration) -> Tally {
        let (before, end) = (self.load.tally(), Instant::now() + duration);
        while Instant::now() < end {
            self.tick().await;
        }
        self.load.tally().since(&before)
    }

    /// Lets time pass until this holds; false if it does not come.
    async fn wait_for(&mut self, holds: impl Fn(&Self) -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        loop {
            self.tick().await;
            if holds(self) || Instant::now() > end {
                return holds(self);
            }
        }
    }

    async fn wait_for_weight(&mut self, percent: u32) -> bool {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let config = self.caller.get(self.admin, "/config").await.unwrap_or_default();
            if weight_of_v2(&config) == Some(u64::from(percent)) {
                return true;
            }
            tokio::time::sleep(TICK / 10).await;
        }
        false
    }

    /// Waits a tick, looks at everything, and shows it.
    async fn tick(&mut self) {
        tokio::time::sleep(TICK).await;
        if let Ok(circuits) = self.caller.get(self.admin, "/circuits").await {
            for (circuit, instance) in self.circuits.iter_mut().zip(&self.instances) {
                *circuit = circuit_of(&circuits, &instance.address.to_string()).unwrap_or_default();
            }
        }
        self.lately.push_back((Instant::now(), self.load.tally()));
        if self.lately.len() > RATE_TICKS {
            self.lately.pop_front();
        }
        let frame = self.frame();
        self.view.draw(&frame);
    }

    fn frame(&self) -> Frame {
        let tally = self.load.tally();
        let (since, earlier) = self.lately.front().copied().unwrap_or((self.began, Tally::default()));
        let (seconds, lately) = (since.elapsed().as_secs_f64().max(0.1), tally.since(&earlier));
        let rows = self.instances.iter().zip(lately.answered).zip(&self.circuits);
        Frame {
            elapsed: self.began.elapsed(),
            v2_percent: self.v2_percent,
            rows: rows
                .map(|((instance, answered), circuit)| Row {
                    name: instance.name,
                    version: instance.version,
                    per_second: answered as f64 / seconds,
                    circuit: circuit.show(),
                })
                .collect(),
            requests: tally.ended,
            errors: tally.errors,
            failed_tries: self.failed_tries(),
        }
    }
}

impl Circuit {
    fn show(&self) -> String {
        match (self.state.as_str(), self.reason.as_str()) {
            (state, "") | (state @ "closed", _) => state.to_owned(),
            (state, reason) => format!("{state}: {reason}"),
        }
    }
}

fn of_v2(instances: &[Instance], tally: &Tally) -> u64 {
    let both = instances.iter().zip(tally.answered);
    both.filter(|(instance, _)| instance.version == "v2").map(|(_, answered)| answered).sum()
}

/// The weight of v2 in the rule that is in force, by the agent's `/config`.
fn weight_of_v2(config: &Value) -> Option<u64> {
    let list = |value: &Value, name: &str| value[name].as_array().cloned().unwrap_or_default();
    let rules = list(config, "services").into_iter().flat_map(|service| list(&service, "rules"));
    let mut destinations = rules.flat_map(|rule| list(&rule, "destinations"));
    destinations.find(|destination| destination["version"] == "v2")?["weight"].as_u64()
}

/// The circuit of the instance at this address, by the agent's `/circuits`.
fn circuit_of(circuits: &Value, address: &str) -> Option<Circuit> {
    let circuit = circuits.as_array()?.iter().find(|circuit| circuit["target"] == address)?;
    let text = |name: &str| circuit[name].as_str().unwrap_or_default().to_owned();
    Some(Circuit { state: text("state"), reason: text("reason") })
}
