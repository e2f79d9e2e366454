//! The table of answers: what is done, what is dropped, what waits and for how long; and what is said of it, once.

use std::time::Duration;

use venus_mqtt_integration::{Answer, Backend, DEADLINE, Part, Rig, Setup, parts::Signal};

use super::{CHARGER, FAST, OTHER, OTHER_SERIAL, SERIAL, assert_in_order, await_all, await_measured, charger, other, running, said};

/// A post that fails is tried again after this, at the earliest: five seconds less the jitter.
const FIRST_RETRY: Duration = Duration::from_millis(3900);

/// The measurement that got this answer, and the one after it.
fn first_two(answer: Answer, more: &str) -> (Rig, Backend, String, String) {
    let backend = Backend::start();
    backend.next([answer]);
    let rig = running(Setup::default().http(&backend.section(&format!("{FAST}{more}"))));
    let requests = backend.wait("a second request", DEADLINE, |requests| (requests.len() >= 2).then(|| requests.to_vec()));
    let stamps = (requests[0].stamp(), requests[1].stamp());
    (rig, backend, stamps.0, stamps.1)
}

/// The measurement waits and comes again after the first wait; both changes are said, and nothing else.
fn kept(answer: Answer, more: &str, why: &str) {
    let (rig, backend, first, second) = first_two(answer, more);
    assert_eq!(first, second, "it should have waited");
    let times = backend.requests();
    assert!(times[1].at - times[0].at >= FIRST_RETRY, "after {:?}", times[1].at - times[0].at);
    assert_in_order(&await_all(&rig, &backend));
    let lines = troubles(&rig);
    assert_eq!(lines.len(), 1, "one line for one change: {lines:#?}");
    assert!(lines[0].contains(why) && lines[0].contains("127.0.0.1"), "{why:?} is not in {}", lines[0]);
    rig.await_log(Part::Bridge, "takes the measurements again");
    assert_eq!(said(&rig, "takes the measurements again").len(), 1, "{}", rig.log(Part::Bridge));
}

/// The measurement is dropped, with one line that says why; the next one is posted.
fn dropped(answer: Answer, why: &[&str]) {
    let (rig, backend, first, second) = first_two(answer, "");
    assert!(first < second, "it should have been dropped");
    backend.await_delivered(3);
    let lines = troubles(&rig);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(why.iter().all(|why| lines[0].contains(why)), "{why:?} is not in {}", lines[0]);
}

fn troubles(rig: &Rig) -> Vec<String> {
    said(rig, "http 1: ").into_iter().filter(|line| line.starts_with("warn:") || line.starts_with("error:")).collect()
}

#[test]
fn taken() {
    let backend = Backend::start();
    let rig = running(Setup::default().http(&backend.section(FAST)));
    backend.await_delivered(20);
    assert_eq!(said(&rig, "takes the measurements").len(), 1);
    assert_eq!(troubles(&rig), [""; 0]);
    super::assert_once(&backend.requests());
    assert_in_order(&super::firsts(&backend.requests()));
}

#[test]
fn taken_in_part() {
    let backend = Backend::start();
    backend.unknown(&[OTHER_SERIAL]);
    let mut rig = Rig::new(Setup::default().http(&backend.section(FAST)));
    rig.fake().add(CHARGER, charger());
    rig.fake().add(OTHER, other());
    rig.start_bridge();
    let requests = backend.await_requests(10);
    assert!(requests.windows(2).all(|pair| pair[0].stamp() < pair[1].stamp()), "each was done");
    let lines = troubles(&rig);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains(OTHER_SERIAL) && lines[0].contains("not found") && !lines[0].contains(SERIAL), "{}", lines[0]);
    backend.unknown(&[]);
    rig.await_log(Part::Bridge, "takes all of the measurements");
}

#[test]
fn nobody_known() {
    let backend = Backend::start();
    backend.unknown(&[SERIAL]);
    let rig = running(Setup::default().http(&backend.section(FAST)));
    let requests = backend.await_requests(10);
    assert!(requests.iter().any(|request| request.status == Some(404)));
    assert!(requests.windows(2).all(|pair| pair[0].stamp() < pair[1].stamp()), "each was dropped");
    let lines = troubles(&rig);
    assert_eq!(lines.len(), 1, "{lines:#?}");
    assert!(lines[0].contains(SERIAL), "{}", lines[0]);
    backend.unknown(&[]);
    backend.await_delivered(3);
}

#[test]
fn refused_as_it_is() {
    dropped(Answer::text(400, "{\"detail\": \"no such field\"}"), &["400", "no such field"]);
    dropped(Answer::status(413), &["413"]);
    dropped(Answer::status(422), &["422"]);
}

both! {
    /// One line, no attempts; the corrected key counts at SIGHUP, and everything that waited is delivered at once.
    fn the_wrong_key(rig in Setup::default().file("key", "wrong-key\n").file("right", "right-key\n")) {
        let backend = Backend::on(rig.host());
        backend.key("right-key");
        rig.configure(rig.setup().clone().http(&backend.section(&format!("{FAST}api_key_file = \"{{dir}}/key\""))));
        rig.fake().add(CHARGER, charger());
        rig.start_bridge();
        let first = backend.await_requests(1).remove(0);
        await_measured(&rig, 20);
        assert_eq!(backend.requests().len(), 1, "a wrong key is not tried again and again");
        let lines = troubles(&rig);
        assert_eq!(lines.len(), 1, "{lines:#?}");
        assert!(lines[0].contains("401") && lines[0].contains("api_key_file"), "{}", lines[0]);
        rig.configure(rig.setup().clone().file("key", "right-key\n"));
        rig.signal(Part::Bridge, Signal::SIGHUP);
        let delivered = backend.await_delivered(1).remove(0);
        assert_eq!(delivered.stamp(), first.stamp(), "the oldest first");
        assert_in_order(&await_all(&rig, &backend));
        let log = rig.log(Part::Bridge);
        assert!(!log.contains("wrong-key") && !log.contains("right-key"), "a key is in the log");
    }
}

#[test]
fn forbidden() {
    let backend = Backend::start();
    backend.answer(Answer::status(403));
    let rig = running(Setup::default().http(&backend.section(FAST)));
    backend.await_requests(1);
    await_measured(&rig, 20);
    assert_eq!(backend.requests().len(), 1);
    assert!(troubles(&rig)[0].contains("403"));
}

/// As long as it says, and never not at all.
#[test]
fn told_to_wait() {
    for (status, when, least) in [(429, "2", 1900), (503, "2", 1900), (503, "0", 900)] {
        let (rig, backend, first, second) = first_two(Answer::retry_after(status, when), "");
        assert_eq!(first, second);
        let requests = backend.requests();
        let wait = requests[1].at - requests[0].at;
        assert!(wait >= Duration::from_millis(least), "{wait:?}");
        assert_eq!(troubles(&rig).len(), 1);
    }
}

/// So long that the scenario does not live to see it; the log says how long, and it is an hour at most.
#[test]
fn told_to_wait_for_long() {
    for wait in ["10000000000", "Fri, 31 Dec 2100 23:59:59 GMT"] {
        let backend = Backend::start();
        backend.answer(Answer::retry_after(503, wait));
        let rig = running(Setup::default().http(&backend.section(FAST)));
        let line = rig.await_log(Part::Bridge, "warn: http 1: ");
        assert!(line.contains("1 h") || line.contains("60 min") || line.contains("3600 s"), "{line}");
        await_measured(&rig, 10);
        assert_eq!(backend.requests().len(), 1);
    }
}

#[test]
fn an_error_of_its_own() {
    kept(Answer::text(500, "<html>Traceback"), "", "500");
}

#[test]
fn bad_gateway() {
    kept(Answer::status(502), "", "502");
}

/// Nonsense in place of a time is as if nothing was said.
#[test]
fn busy_without_saying_for_how_long() {
    kept(Answer::retry_after(503, "soon"), "", "503");
}

#[test]
fn nothing_there_at_this_address() {
    kept(Answer::text(404, "<html>nginx</html>"), "", "404");
}

#[test]
fn a_redirect_is_not_followed() {
    let elsewhere = Backend::start();
    let to = format!("{}/stolen?token=geheim", elsewhere.url());
    kept(Answer::redirect(307, &to), "", "redirect");
    assert!(elsewhere.requests().is_empty());
    assert_eq!(elsewhere.connections(), 0);
}

/// What a hotel's network answers before somebody has paid.
#[test]
fn a_log_in_page() {
    kept(Answer::text(200, "<!DOCTYPE html><p>Welcome!").with("Content-Type", "text/html; charset=utf-8"), "", "web page");
}

#[test]
fn a_web_server_refuses() {
    let page = "<html>The plain HTTP request was sent to HTTPS port</html>";
    kept(Answer::text(400, page).with("Content-Type", "text/html"), "", "a web server refuses it");
}

#[test]
fn the_connection_ends_before_the_answer() {
    kept(Answer::Close, "", "");
}

#[test]
fn the_connection_is_reset() {
    kept(Answer::Reset, "", "reset");
}

#[test]
fn no_answer() {
    kept(Answer::Hang, "timeout = 0.5\n", "0.5");
}

#[test]
fn an_answer_that_never_ends() {
    kept(Answer::Drip(Duration::from_millis(50)), "timeout = 0.5\n", "0.5");
}

#[test]
fn no_http() {
    kept(Answer::Raw("\x15\x03\x01 SMTP speaking\r\n\r\n"), "", "HTTP");
}

#[test]
fn headers_without_end() {
    kept(Answer::EndlessHeaders, "timeout = 2\n", "");
}

/// What else means that it was taken: other statuses, and the ways in which old and odd servers write an answer.
#[test]
fn taken_in_other_words() {
    let backend = Backend::start();
    let answers = [
        Answer::text(200, "{}"),
        Answer::text(200, "OK"),
        Answer::text(204, ""),
        Answer::text(202, "{}").with("Connection", "close"),
        Answer::text(207, "no results"),
        Answer::Raw("HTTP/1.0 201 Created\r\n\r\nuntil the end"),
        Answer::Raw("HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"),
        Answer::Raw("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"),
        Answer::Raw("HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"),
        Answer::Raw("HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\nHTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"),
        Answer::Raw("HTTP/1.1 201 Created\r\nContent-Length: 50\r\n\r\nthe rest is missing"),
        Answer::Raw("HTTP/1.1 201 \r\nContent-Length: 0\r\n\r\n"),
    ];
    let count = answers.len();
    backend.next(answers);
    let rig = running(Setup::default().http(&backend.section(FAST)));
    let requests = backend.wait("all of them", DEADLINE, |requests| (requests.len() > count).then(|| requests.to_vec()));
    assert_eq!(troubles(&rig), [""; 0]);
    assert!(requests.windows(2).all(|pair| pair[0].stamp() < pair[1].stamp()), "one was not taken as done");
}

/// Nobody wants to read what follows, but the measurement was taken.
#[test]
fn a_body_without_end() {
    let backend = Backend::start();
    backend.next([Answer::HugeBody, Answer::DripBody(Duration::from_millis(50)), Answer::HugeBody]);
    let rig = running(Setup::default().http(&backend.section(&format!("{FAST}timeout = 0.5"))));
    let before = rig.rss(Part::Bridge);
    let requests = backend.await_requests(10);
    assert!(requests.windows(2).all(|pair| pair[0].stamp() < pair[1].stamp()), "each was done at the first attempt");
    let grown = rig.rss(Part::Bridge).saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} KiB more for a body that nobody reads");
    assert_eq!(troubles(&rig), [""; 0]);
}
