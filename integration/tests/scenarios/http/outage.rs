//! Store and forward: what could not be delivered waits, survives whatever ends the bridge, and is sent in order, at its own pace.

use std::time::Duration;

use venus_mqtt_integration::{Answer, Backend, DEADLINE, Ended, Part, Request, Setup};

use super::{FAST, assert_in_order, assert_once, await_all, await_measured, firsts, measured, running, running_with, said};

both! {
    /// The backend is away for a while: nothing is missing, everything has the time it was measured at, the oldest comes first.
    fn the_backend_is_away(rig in Setup::default()) {
        let backend = running_with(&mut rig, FAST);
        backend.await_delivered(5);
        backend.down();
        await_measured(&rig, 30);
        backend.up();
        let stamps = await_all(&rig, &backend);
        assert_in_order(&stamps);
        assert_once(&backend.requests());
        assert_eq!(said(&rig, "warn: http 1: ").len(), 1, "{:#?}", said(&rig, "http 1: "));
        assert_eq!(said(&rig, "takes the measurements again").len(), 1);
        assert_eq!(measured(&rig, "1").into_iter().take(30).collect::<Vec<_>>(), stamps.into_iter().take(30).collect::<Vec<_>>());
    }
}

/// A network that is full of devices that come back must not fall over them.
#[test]
fn no_faster_than_the_pace() {
    let backend = Backend::start();
    backend.down();
    let rig = running(Setup::default().http(&backend.section("update_interval = 0.05\ncatch_up_rate = 10")));
    await_measured(&rig, 60);
    backend.up();
    let delivered: Vec<Request> = backend.wait("forty", DEADLINE, |requests| {
        let delivered: Vec<Request> = requests.iter().filter(|request| request.delivered()).cloned().collect();
        (delivered.len() >= 40).then_some(delivered)
    });
    let took = delivered[39].at - delivered[0].at;
    // 39 gaps of 0.1 s, had the server not been late for the first one
    assert!(took >= Duration::from_millis(2900), "forty posts in {took:?} are more than ten a second");
    let fullest = delivered
        .iter()
        .map(|first| delivered.iter().filter(|each| each.at >= first.at && each.at - first.at < Duration::from_secs(1)).count());
    assert!(fullest.max().unwrap_or_default() <= 15, "too many in one second");
    assert_in_order(&firsts(&delivered));
}

both! {
    /// Stopped or killed with measurements that wait: they are there afterwards, and sent first.
    fn restarts_with_a_queue(rig in Setup::default()) {
        let backend = running_with(&mut rig, FAST);
        backend.await_delivered(2);
        backend.down();
        for kill in [false, true, true] {
            await_measured(&rig, 8);
            if kill {
                rig.kill(Part::Bridge);
            } else {
                assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
            }
            rig.start_bridge();
        }
        await_measured(&rig, 3);
        backend.up();
        assert_in_order(&await_all(&rig, &backend));
        assert_once(&backend.requests());
        assert_eq!(said(&rig, "of an earlier time wait").len(), 3);
    }
}

/// Taken, but the answer does not arrive: it is sent again under the same time, so that the backend can tell.
#[test]
fn crashed_between_taking_and_answering() {
    let backend = Backend::start();
    backend.next([Answer::Api, Answer::Reset]);
    let rig = running(Setup::default().http(&backend.section(FAST)));
    let requests = backend.wait("a third one", DEADLINE, |requests| (requests.len() >= 3).then(|| requests.to_vec()));
    assert_eq!(requests[1].stamp(), requests[2].stamp());
    assert_eq!(requests[1].body, requests[2].body);
    assert_in_order(&await_all(&rig, &backend));
}

/// An answer that is under way when it is told to stop is waited for: it would be posted twice.
#[test]
fn stopped_while_it_posts() {
    let backend = Backend::start();
    backend.answer(Answer::Slow(Duration::from_millis(700)));
    let mut rig = running(Setup::default().http(&backend.section(FAST)));
    backend.await_requests(2);
    assert_eq!(rig.stop(Part::Bridge), Ended::Code(0));
    // whether or not anybody reads it
    backend.wait("the last answer", DEADLINE, |requests| requests.iter().all(|request| request.delivered()).then_some(()));
    backend.answer(Answer::Api);
    rig.start_bridge();
    await_all(&rig, &backend);
    assert_once(&backend.requests());
}

/// The oldest is dropped first, which is counted and said once.
#[test]
fn the_queue_is_bounded() {
    let backend = Backend::start();
    backend.down();
    let rig = running(Setup::default().http(&backend.section(&format!("{FAST}queue_records = 5"))));
    let stamps = await_measured(&rig, 25);
    backend.up();
    let delivered = backend.wait("the first one", DEADLINE, |requests| firsts(requests).first().cloned());
    assert!(delivered > stamps[15], "{delivered} should have been dropped: {stamps:#?}");
    assert_eq!(said(&rig, "the queue is full").len(), 1);
    assert_in_order(&firsts(&backend.requests()));
    let mut rig = rig;
    rig.signal(Part::Bridge, venus_mqtt_integration::parts::Signal::SIGUSR1);
    let line = rig.await_log(Part::Bridge, " dropped");
    assert!(!line.contains(" 0 dropped"), "{line}");
}

/// A target that has a name keeps its queue when it is another one's number; another shape is another queue.
#[test]
fn a_queue_belongs_to_its_name() {
    let (backend, second) = (Backend::start(), Backend::start());
    backend.down();
    let named = backend.section(&format!("{FAST}name = \"solar\""));
    let mut rig = running(Setup::default().http(&named));
    venus_mqtt_integration::eventually("a few", DEADLINE, || (super::measured(&rig, "solar").len() >= 5).then_some(()));
    rig.stop(Part::Bridge);
    let waiting = measured(&rig, "solar");
    rig.configure(Setup::default().http(&second.section(FAST)).http(&named));
    backend.up();
    rig.start_bridge();
    let stamps = backend.wait("what waited", DEADLINE, |requests| {
        let stamps = firsts(requests);
        waiting.iter().all(|stamp| stamps.contains(stamp)).then_some(stamps)
    });
    assert_in_order(&stamps);
    let first = second.await_delivered(1)[0].stamp();
    assert!(first > waiting[waiting.len() - 1], "what waited for the other one was posted here");
}
