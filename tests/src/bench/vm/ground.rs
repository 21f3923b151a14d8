//! What every guest's root is made of, in each rival's form: trees, an index, disk images.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use images::Image;

use super::super::BenchError;
use super::super::ground::{pattern, seal};
use super::super::overlay::Overlay;
use super::Options;
use super::workload::Kind;

/// Files of the repository.
const REPOSITORY_FILES: usize = 10_000;
/// Files that its other branch has with another content.
const OTHER_FILES: usize = 1000;
/// Room on the ext4 image; it takes what is in it.
const EXT4_BYTES: u64 = 4 << 30;
/// Files of the C project.
const C_FILES: usize = 12;
/// Names what is made here; another text makes it anew.
const STAMP: &str = "2";

/// One root, in each rival's form.
#[derive(Debug)]
pub struct Root {
    /// Read-only trees, the first on top.
    pub lowers: Vec<PathBuf>,
    /// thinroot's index of them.
    pub index: PathBuf,
    /// The same as one ext4.
    pub ext4: PathBuf,
    /// The same as one EROFS.
    pub erofs: PathBuf,
}

/// Where roots are made and kept.
#[derive(Debug)]
pub struct Ground<'a> {
    directory: PathBuf,
    image: &'a Image,
    options: &'a Options,
}

impl<'a> Ground<'a> {
    /// Makes nothing yet.
    pub fn new(options: &'a Options, image: &'a Image) -> Result<Self, BenchError> {
        let directory = options.directory.join("roots");
        fs::create_dir_all(&directory).map_err(BenchError::file(&directory))?;
        // A qcow2's backing file is looked for beside it.
        let directory = fs::canonicalize(&directory).map_err(BenchError::file(&directory))?;
        Ok(Self { directory, image, options })
    }

    /// The base of this kind with the kernel's modules, and what is worked on; made unless it is
    /// there.
    pub fn root(&self, kind: Kind) -> Result<Root, BenchError> {
        let (name, base) = match kind {
            Kind::Plain => ("plain", &self.options.base),
            Kind::Work => ("work", &self.options.work_base),
        };
        let modules = self.image.modules_layer(base).map_err(BenchError::image)?;
        let place = |what: &str| self.directory.join(format!("{name}.{what}"));
        let mut lowers = vec![base.clone(), modules];
        let top = place("tree");
        if kind == Kind::Work {
            lowers.insert(0, top.clone());
        }
        let root =
            Root { lowers, index: place("index"), ext4: place("ext4"), erofs: place("erofs") };
        let text = self.stamp(base)?;
        let stamp = place("stamp");
        if !fs::read_to_string(&stamp).is_ok_and(|old| old == text) {
            println!("making the disk images of the {name} root, once");
            if kind == Kind::Work {
                make_material(&top, &self.options.package)?;
            }
            self.make_images(&root)?;
            fs::write(&stamp, &text).map_err(BenchError::file(&stamp))?;
        }
        seal(&self.options.programs, &root.lowers, &root.index)?;
        Ok(root)
    }

    /// Another base or kernel makes everything anew.
    fn stamp(&self, base: &Path) -> Result<String, BenchError> {
        let made = fs::metadata(base).map_err(BenchError::file(base))?;
        Ok(format!("{STAMP} {} {}.{}", self.image.version(), made.ctime(), made.ctime_nsec()))
    }

    fn make_images(&self, root: &Root) -> Result<(), BenchError> {
        let whole = Overlay::read_only(&root.lowers, &self.directory.join("whole"))?;
        for path in [&root.ext4, &root.erofs] {
            if path.exists() {
                fs::remove_file(path).map_err(BenchError::file(path))?;
            }
        }
        let file = fs::File::create(&root.ext4).map_err(BenchError::file(&root.ext4))?;
        file.set_len(EXT4_BYTES).map_err(BenchError::file(&root.ext4))?;
        run(Command::new("/sbin/mkfs.ext4").arg("-q").arg("-d").arg(whole.root()).arg(&root.ext4))?;
        // Not compressed: an emulated guest would spend more on unpacking than it saves.
        run(Command::new("mkfs.erofs").arg("--quiet").arg(&root.erofs).arg(whole.root()))
    }
}

/// What workloads work on, below `srv`: a repository of many small files, a tarball of them, a C
/// project, a package.
fn make_material(top: &Path, package: &Path) -> Result<(), BenchError> {
    if top.exists() {
        fs::remove_dir_all(top).map_err(BenchError::file(top))?;
    }
    make_repository(top)?;
    make_project(&top.join("srv/project"))?;
    fs::copy(package, top.join("srv/package.deb")).map_err(BenchError::file(package))?;
    Ok(())
}

/// A program of some files, each with a function that calls the next one's.
fn make_project(project: &Path) -> Result<(), BenchError> {
    fs::create_dir_all(project).map_err(BenchError::file(project))?;
    let write = |name: &str, text: String| {
        let path = project.join(name);
        fs::write(&path, text).map_err(BenchError::file(&path))
    };
    let mut header = String::from("#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n");
    let mut objects = String::new();
    for file in 0..C_FILES {
        writeln!(header, "int part{file}(int depth);").unwrap_or_default();
        write!(objects, " part{file}.o").unwrap_or_default();
        let next = if file + 1 < C_FILES {
            format!("part{}(depth + 1)", file + 1)
        } else {
            "depth".to_owned()
        };
        let mut text = String::from("#include \"project.h\"\n");
        for function in 0..40 {
            writeln!(
                text,
                "static int step{function}(int n) {{ char text[64]; \
                 snprintf(text, sizeof text, \"%d\", n + {function}); return atoi(text) - {function}; }}"
            )
            .unwrap_or_default();
        }
        writeln!(text, "int part{file}(int depth) {{").unwrap_or_default();
        for function in 0..40 {
            writeln!(text, "    depth = step{function}(depth);").unwrap_or_default();
        }
        writeln!(text, "    return {next};\n}}").unwrap_or_default();
        write(&format!("part{file}.c"), text)?;
    }
    write("project.h", header)?;
    let main =
        "#include \"project.h\"\nint main(void) { printf(\"%d parts\\n\", part0(1)); return 0; }\n";
    write("main.c", main.to_owned())?;
    write(
        "Makefile",
        format!(
            "CFLAGS = -O2 -Wall\nprogram: main.o{objects}\n\t$(CC) -o $@ $^\n\
             main.o{objects}: project.h\n"
        ),
    )
}

fn make_repository(top: &Path) -> Result<(), BenchError> {
    let repository = top.join("srv/repository");
    fs::create_dir_all(&repository).map_err(BenchError::file(&repository))?;
    lay_out(&repository, 0..REPOSITORY_FILES, "")?;
    let git = |words: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(&repository).args([
            "-c",
            "user.name=bench",
            "-c",
            "user.email=bench",
        ]);
        command.args(["-c", "safe.directory=*"]).args(words);
        run(command.env("GIT_CONFIG_NOSYSTEM", "1").env("HOME", top))
    };
    git(&["init", "--quiet", "--initial-branch=main"])?;
    // What a disk image cannot carry over, inode numbers and ctimes, must not make one rival's
    // files look changed and read again.
    git(&["config", "core.checkStat", "minimal"])?;
    git(&["config", "core.trustctime", "false"])?;
    git(&["add", "--all"])?;
    git(&["commit", "--quiet", "--message=all"])?;
    git(&["checkout", "--quiet", "-b", "other"])?;
    lay_out(&repository, 0..OTHER_FILES, "other")?;
    git(&["commit", "--quiet", "--all", "--message=other"])?;
    git(&["checkout", "--quiet", "main"])?;
    // Older than the index, or git reads every file again to be sure.
    let mut find = Command::new("find");
    find.arg(&repository).args(["-path", "*/.git", "-prune", "-o", "-type", "f"]);
    run(find.args(["-exec", "touch", "-h", "-d", "2026-01-01", "{}", "+"]))?;
    git(&["update-index", "-q", "--refresh"])?;
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(&repository).args(["--exclude=./.git", "-cf"]);
    run(tar.arg(top.join("srv/files.tar")).arg("."))
}

fn lay_out(
    repository: &Path,
    files: std::ops::Range<usize>,
    first_line: &str,
) -> Result<(), BenchError> {
    for file in files {
        let directory = repository.join(format!("source{:03}", file / 40));
        fs::create_dir_all(&directory).map_err(BenchError::file(&directory))?;
        let mut text = format!("{first_line}\n");
        for line in pattern(file as u64 * 4096, 1000 + file % 2000).chunks(32) {
            line.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap_or_default());
            text.push('\n');
        }
        let path = directory.join(format!("file{file:05}.c"));
        fs::write(&path, text).map_err(BenchError::file(&path))?;
    }
    Ok(())
}

/// Runs a tool, whose words are told if it fails.
pub fn run(command: &mut Command) -> Result<(), BenchError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command.output().map_err(BenchError::file(Path::new(&program)))?;
    if output.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(BenchError::Subject { kind: "a tool", what: format!("{program}: {}", output.status), log })
}
