//! A volume with a file system on it, mounted here: nbdfuse makes a file of the volume, a loop device a disk of the file.

use crate::command::{Started, run};
use crate::fixture::{temp_dir, wait};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const MOST: Duration = Duration::from_secs(60);

/// Through one node; it does not follow when that node dies. Dropped without `unmount` it is lost, as when the
/// machine that has it mounted loses its power: what was not synced is gone.
pub struct Mounted {
    dir: PathBuf,
    nbdfuse: Option<Started>,
    loop_device: Option<String>,
    mounted: bool,
}

impl Mounted {
    /// `uri`, `bytes`: of the volume. `make`: a file system for it first, as in `mkfs.ext4`.
    #[track_caller]
    pub fn of(uri: &str, bytes: u64, make: Option<&str>) -> Self {
        let mut mounted =
            Self { dir: temp_dir("mounted"), nbdfuse: None, loop_device: None, mounted: false };
        File::create(mounted.file()).expect("in a directory of its own");
        fs::create_dir(mounted.path()).expect("in a directory of its own");
        mounted.nbdfuse =
            Some(Started::start(Command::new("nbdfuse").arg(mounted.file()).arg(uri)));
        let file = mounted.file();
        let is_whole = || fs::metadata(&file).is_ok_and(|metadata| metadata.len() == bytes);
        wait("the volume is a file", MOST, is_whole);
        let mut losetup = Command::new("losetup");
        losetup.args(["--find", "--show", "--direct-io=on"]).arg(&file);
        let device = run(&mut losetup, MOST).ok().trim().to_owned();
        mounted.loop_device = Some(device.clone());
        if let Some(make) = make {
            run(Command::new(format!("mkfs.{make}")).args(["-q", &device]), MOST).ok();
        }
        run(Command::new("mount").arg(&device).arg(mounted.path()), MOST).ok();
        mounted.mounted = true;
        mounted
    }

    fn file(&self) -> PathBuf {
        self.dir.join("volume")
    }

    /// Where its files are.
    pub fn path(&self) -> PathBuf {
        self.dir.join("mnt")
    }

    /// In order: all that was written is on the volume.
    #[track_caller]
    pub fn unmount(mut self) {
        run(Command::new("umount").arg(self.path()), MOST).ok();
        self.mounted = false;
        let device = self.loop_device.take().expect("it was mounted");
        run(Command::new("losetup").args(["--detach", &device]), MOST).ok();
        run(Command::new("umount").arg(self.file()), MOST).ok();
        let nbdfuse = self.nbdfuse.take().expect("it was mounted");
        nbdfuse.finish(MOST).ok();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let had = self.nbdfuse.take().is_some();
        let lazily = |path: &Path| Command::new("umount").arg("--lazy").arg(path).status();
        // There is nobody to tell of it here.
        if self.mounted {
            drop(lazily(&self.path()));
        }
        if let Some(device) = self.loop_device.take() {
            drop(Command::new("losetup").args(["--detach", &device]).status());
        }
        if had {
            drop(lazily(&self.file()));
        }
        drop(fs::remove_dir_all(&self.dir));
    }
}
