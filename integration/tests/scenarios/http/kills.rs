//! Killed at any moment, again and again, while the backend is as bad as it can be: what was measured arrives.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use venus_mqtt_integration::{Answer, Backend, Part, Rig, Setup};

use super::{CHARGER, assert_in_order, await_all, charger, measured};

const KILLS: usize = 100;

/// A small generator of numbers (xorshift): a run can be repeated by its seed.
struct Random(u64);

impl Random {
    /// From `VENUS_SEED` where it is set.
    fn new() -> Self {
        let given = std::env::var("VENUS_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |now| now.as_secs()));
        // shown when the test fails
        eprintln!("VENUS_SEED={seed}");
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }

    fn up_to(&mut self, span: Duration) -> Duration {
        Duration::from_micros(self.below(u64::try_from(span.as_micros()).unwrap_or(1)))
    }
}

/// What the backend does next.
fn upset(random: &mut Random, backend: &Backend) {
    match random.below(6) {
        0 => backend.down(),
        1 => backend.answer(Answer::Hang),
        2 => backend.answer(Answer::Slow(Duration::from_millis(20))),
        3 => backend.next([Answer::Reset]),
        4 => backend.next([Answer::Close]),
        _ => {
            backend.up();
            backend.answer(Answer::Api);
        }
    }
}

/// Every stamp that was logged arrives, those of each life in order; one that comes twice does so around a kill or an upset.
#[test]
fn nothing_is_lost_by_being_killed() {
    let mut random = Random::new();
    let backend = Backend::start();
    let section = backend.section("update_interval = 0.05\ncatch_up_rate = 1000\ntimeout = 0.3");
    let mut rig = Rig::new(Setup::default().http(&section));
    rig.fake().add(CHARGER, charger());
    let mut disturbed: Vec<Instant> = Vec::new();
    let mut lives = 0;
    while disturbed.len() < KILLS || lives < KILLS {
        rig.start(Part::Bridge);
        // most lives are long enough to measure something, some end before they have begun
        let longest = if random.below(4) == 0 { 20 } else { 350 };
        let life = random.up_to(Duration::from_millis(longest));
        let end = Instant::now() + life;
        let mut turn = random.up_to(Duration::from_millis(150));
        while Instant::now() + turn < end {
            // the load itself takes its time: this is what happens meanwhile
            std::thread::sleep(turn);
            disturbed.push(Instant::now());
            upset(&mut random, &backend);
            turn = random.up_to(Duration::from_millis(150));
        }
        std::thread::sleep(end.saturating_duration_since(Instant::now()));
        disturbed.push(Instant::now());
        rig.kill(Part::Bridge);
        lives += 1;
    }
    disturbed.push(Instant::now());
    backend.down();
    backend.answer(Answer::Api);
    backend.up();
    rig.start_bridge();
    let stamps = measured(&rig, "1");
    let arrived = await_all(&rig, &backend);
    eprintln!("{lives} lives, {} measured, {} arrived", stamps.len(), arrived.len());
    assert!(stamps.len() > KILLS, "too little happened to show anything: {}", stamps.len());
    assert_in_order(&arrived);
    let mut times: BTreeMap<String, Vec<Instant>> = BTreeMap::new();
    for request in backend.delivered() {
        times.entry(request.stamp()).or_default().push(request.at);
    }
    for (stamp, times) in times {
        for pair in times.windows(2) {
            let excused = disturbed.iter().any(|at| pair[0] <= *at && *at <= pair[1]);
            assert!(excused, "{stamp} came twice, with nothing that happened between");
        }
    }
    said_nothing_odd(&rig);
}

/// A life that was killed leaves nothing that the next one has to complain of.
fn said_nothing_odd(rig: &Rig) {
    for line in rig.log(Part::Bridge).lines() {
        let odd = ["panicked", "internal error", "cannot be read", "cut off", "damaged", "lost"].iter().any(|word| line.contains(word));
        assert!(!odd, "{line}");
    }
}
