//! Many containers: one after the other, and at once.

use husk_tests::ctr::Run;
use husk_tests::host::leaves_nothing;

use crate::busybox;

fn run_one(id: &str, number: i32, root: &std::path::Path) {
    let script = format!("echo number {number}; exit {number}");
    let output = Run::on_directory(id, root).run(&["sh", "-c", &script]);
    assert_eq!((output.status, output.text()), (number, format!("number {number}\n")), "{}", output.errors());
}

#[test]
fn twenty_in_a_row() {
    leaves_nothing(|| {
        let root = busybox();
        (0..20).for_each(|number| run_one(&format!("row{number}"), number, root.path()));
    });
}

#[test]
fn five_at_once() {
    leaves_nothing(|| {
        let roots: Vec<_> = (0..5).map(|_| busybox()).collect();
        std::thread::scope(|scope| {
            for (number, root) in (0..5).zip(&roots) {
                scope.spawn(move || run_one(&format!("once{number}"), number, root.path()));
            }
        });
    });
}
