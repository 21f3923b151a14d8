//! What a guest asks before and for its command: counted, so that it cannot grow unseen.

use tests::real_guest::RealGround;

/// The most requests of `run -- /bin/true`, on every kernel, by kind. Not here: READ and READLINK,
/// which depend on the kernel's read-ahead and on the base, and FORGET, SYNCFS and DESTROY, which
/// come or not when the VMM goes.
///
/// GETATTR: of the root, and of each library that was read before it was looked at, which
/// read-ahead decides. OPEN: the command, three streams, and the one that is answered `ENOSYS`.
/// FLUSH and RELEASE: of the command and the streams alone.
const MOST: [(&str, u64); 8] = [
    ("INIT", 1),
    ("LOOKUP", 24),
    ("GETATTR", 4),
    ("OPEN", 5),
    ("GETXATTR", 1),
    ("SETXATTR", 2),
    ("FLUSH", 1),
    ("RELEASE", 4),
];
const UNCOUNTED: [&str; 5] = ["READ", "READLINK", "FORGET", "SYNCFS", "DESTROY"];

#[test]
fn command_costs_so_many_requests_and_no_more() {
    let Some(ground) = RealGround::find("command_costs_so_many_requests_and_no_more") else {
        return;
    };
    for image in ground.images() {
        let ended = ground.run().image(&image).options(&["-v"]).to_end(&["/bin/true"], b"");
        let shown =
            format!("{} (a stale boot image asks for more)\n{}", image.display(), ended.stderr);
        assert_eq!(ended.status.code(), Some(0), "{shown}");
        let (_, table) = ended
            .stderr
            .split_once("requests of the guest:\n")
            .unwrap_or_else(|| panic!("{shown}"));
        let rows: Vec<(&str, u64)> = table
            .lines()
            .skip(1)
            .take_while(|line| !line.starts_with("all "))
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                Some((words.next()?, words.next()?.parse().ok()?))
            })
            .collect();
        assert!(rows.contains(&("INIT", 1)), "{shown}");
        for (name, count) in rows.into_iter().filter(|(name, _)| !UNCOUNTED.contains(name)) {
            let most = MOST.iter().find(|row| row.0 == name).map_or(0, |row| row.1);
            assert!(count <= most, "{name}: {count}, at most {most}: {shown}");
        }
    }
}
