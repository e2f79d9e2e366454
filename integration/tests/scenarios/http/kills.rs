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

/// Every stamp that was logged arrives, those of each life in order. One that comes again does so in another life, which could not know
/// that it had been taken: one at most is under way when a life ends.
#[test]
fn nothing_is_lost_by_being_killed() {
    let mut random = Random::new();
    let backend = Backend::start();
    let section = "update_interval = 0.05\ncatch_up_rate = 1000\ntimeout = 1\napi_key_file = \"{dir}/key\"";
    // the key says which life a request is of
    let setup = Setup::default().http(&backend.section(section));
    let mut rig = Rig::new(setup.clone().file("key", "0\n"));
    rig.fake().add(CHARGER, charger());
    for life in 1..=KILLS {
        rig.configure(setup.clone().file("key", format!("{life}\n")));
        rig.start(Part::Bridge);
        live(&mut random, &backend);
        rig.kill(Part::Bridge);
    }
    backend.down();
    backend.answer(Answer::Api);
    backend.up();
    rig.configure(setup.file("key", "the last\n"));
    rig.start_bridge();
    let stamps = measured(&rig, "1");
    let arrived = await_all(&rig, &backend);
    eprintln!("{} measured, {} arrived", stamps.len(), arrived.len());
    assert!(stamps.len() > KILLS, "too little happened to show anything: {}", stamps.len());
    assert_in_order(&arrived);
    let mut lives: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for request in backend.delivered() {
        let life = request.header("x-api-key").expect("a key").to_owned();
        lives.entry(request.stamp()).or_default().push(life);
    }
    let again: usize = lives.values().map(|lives| lives.len() - 1).sum();
    eprintln!("{again} of them more than once");
    assert!(again <= KILLS, "{again} came more than once");
    for (stamp, lives) in lives {
        assert!(lives.windows(2).all(|pair| pair[0] != pair[1]), "{stamp} came twice in one life: {lives:?}");
    }
    said_nothing_odd(&rig);
}

/// The backend is upset for a while. Most lives are long enough to measure something, some end before they have begun.
fn live(random: &mut Random, backend: &Backend) {
    let longest = if random.below(4) == 0 { 20 } else { 350 };
    let end = Instant::now() + random.up_to(Duration::from_millis(longest));
    loop {
        let turn = random.up_to(Duration::from_millis(150));
        if Instant::now() + turn >= end {
            break;
        }
        // not to wait for something: this is the load
        std::thread::sleep(turn);
        upset(random, backend);
    }
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
}

/// A life that was killed leaves nothing that the next one has to complain of.
fn said_nothing_odd(rig: &Rig) {
    for line in rig.log(Part::Bridge).lines() {
        let odd = ["panicked", "internal error", "cannot be read", "cut off", "damaged", "lost"].iter().any(|word| line.contains(word));
        assert!(!odd, "{line}");
    }
}
