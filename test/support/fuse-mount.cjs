// A real FUSE mount of type fuse.hf3fs for tests: csrc/emulators/hf3fs_fuse serves it, the emulated client library does
// the I/O. Only in a mount namespace of its own (support/private-mounts.ts): no mount is left, however a test ends.
const { spawn, spawnSync } = require('node:child_process');
const { once } = require('node:events');
const { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } = require('node:fs');
const { tmpdir } = require('node:os');
const { join } = require('node:path');
const { createInterface } = require('node:readline');
const { setTimeout } = require('node:timers/promises');
const { emulators } = require('fastsafetensors-node/testing');

const program = join(__dirname, '..', '..', 'build', 'cmake', 'emulators', 'hf3fs_fuse');

class FuseMount {
  /** The folder that it serves: files are written here, and read in `path`. */
  backing;
  path;
  iovs;
  #folder;
  #daemon;
  #lines;
  #autoUnmount;

  /** Options are those of hf3fs_fuse, without dashes: `{ readonly: true, iovs: 4, autoUnmount: true }`. */
  static async start(options = {}) {
    if (!process.env.PRIVATE_MOUNTS) throw new Error('expected a mount namespace of its own: see private-mounts.ts');
    const mount = new FuseMount();
    mount.#folder = mkdtempSync(join(tmpdir(), 'fastsafetensors-fuse-'));
    chmodSync(mount.#folder, 0o755); // other users have a way to the mount
    mount.backing = join(mount.#folder, 'backing');
    mount.path = join(mount.#folder, 'mount');
    mount.iovs = join(mount.path, '3fs-virt', 'iovs');
    mkdirSync(mount.backing);
    mkdirSync(mount.path);
    await mount.#serve(options);
    return mount;
  }

  /** Runs `scenario` with a mount, and closes that. */
  static async use(options, scenario) {
    const mount = await FuseMount.start(options);
    try {
      await scenario(mount);
    } finally {
      await mount.close();
    }
  }

  get pid() {
    return this.#daemon.pid;
  }

  async #serve(options) {
    this.#autoUnmount = options.autoUnmount === true;
    const flags = Object.entries(options)
      .filter(([, value]) => value !== false)
      .map(([name, value]) => {
        const flag = `--${name.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`;
        return value === true ? flag : `${flag}=${value}`;
      });
    const stdio = ['pipe', 'pipe', 'inherit'];
    this.#daemon = spawn(program, ['--die-with-parent', ...flags, this.backing, this.path], { stdio });
    this.#daemon.ended = once(this.#daemon, 'close');
    this.#lines = createInterface({ input: this.#daemon.stdout })[Symbol.asyncIterator]();
    const { value } = await this.#lines.next();
    if (value !== 'ready') throw new Error('hf3fs_fuse has not mounted');
  }

  /** Sends a command of hf3fs_fuse, as 'readonly 1'. The lines that it answers, without the last one, "ok". */
  async command(text) {
    this.#daemon.stdin.write(`${text}\n`);
    const answer = [];
    for (;;) {
      const { value, done } = await this.#lines.next();
      if (done || value === 'unknown') throw new Error(`hf3fs_fuse does not take "${text}"`);
      if (value === 'ok') return answer;
      answer.push(value);
    }
  }

  /** The links that the daemon has, whoever made them. */
  async links() {
    return (await this.command('links')).map((line) => {
      const [slot, thread, uid, bytes, name, target] = line.split(' ');
      return { slot: Number(slot), thread: Number(thread), uid: Number(uid), bytes: Number(bytes), name, target };
    });
  }

  /** What the daemon has mapped of /dev/shm, in bytes. */
  sharedBytes() {
    const maps = readFileSync(`/proc/${this.pid}/maps`, 'utf8').split('\n');
    return maps
      .filter((line) => line.includes(' /dev/shm/'))
      .map((line) => line.split(' ')[0].split('-'))
      .reduce((bytes, [from, to]) => bytes + Number(BigInt(`0x${to}`) - BigInt(`0x${from}`)), 0);
  }

  /**
   * Runs a scenario of this script in a process that loads over the mount, through the emulated client library. `ended`
   * gives code and signal, however early it ends.
   */
  client(args, settings = {}) {
    const own = { HF3FS_USRBIO_DONT_CHECKFS_FOR_MP: '', TMPDIR: this.#folder };
    const env = { ...process.env, ...emulators.hf3fs.env(settings), ...own };
    const client = spawn(process.execPath, [process.argv[1], ...args], { env, stdio: ['ignore', 'pipe', 'inherit'] });
    client.ended = once(client, 'close');
    return client;
  }

  /** Waits until the daemon has noticed the ends of all clients: it has neither links nor memory. */
  async empty(timeoutMs = 10_000) {
    for (const end = Date.now() + timeoutMs; ; await setTimeout(5)) {
      const links = await this.links();
      const bytes = this.sharedBytes();
      if (links.length === 0 && bytes === 0) return;
      if (Date.now() > end) throw new Error(`the daemon still has ${bytes} bytes and ${JSON.stringify(links)}`);
    }
  }

  /** The daemon answers nothing until resume(). */
  stop() {
    FuseMount.stopDaemon(this.pid);
  }

  /**
   * For another process than the one that started it. Comes back when each of its threads has stopped: what one takes
   * before that the kernel waits for, even where the process that asked is killed.
   */
  static stopDaemon(pid) {
    process.kill(pid, 'SIGSTOP');
    const stateOf = (task) => readFileSync(`/proc/${pid}/task/${task}/stat`, 'latin1').replace(/.*\) /, '')[0];
    while (readdirSync(`/proc/${pid}/task`).some((task) => stateOf(task) !== 'T'));
  }

  resume() {
    process.kill(this.pid, 'SIGCONT');
  }

  /** The daemon dies at once. Its mount then answers ENOTCONN, or is gone where it was to go with it. */
  async kill() {
    process.kill(this.pid, 'SIGKILL');
    await this.#daemon.ended;
    // fusermount3 unmounts it, and now and then comes too early to see that the daemon is dead.
    const mounted = () => readFileSync('/proc/self/mounts', 'utf8').includes(` ${this.path} `);
    for (let i = 0; this.#autoUnmount && i < 200 && mounted(); ++i) await setTimeout(5);
    if (this.#autoUnmount && mounted()) spawnSync('umount', ['-l', this.path]);
  }

  /** A new daemon at the same place, that of before dead: it knows no links and no open files of before. */
  async restart(options = {}) {
    if (this.#daemon.exitCode === null && this.#daemon.signalCode === null) await this.kill();
    spawnSync('umount', ['-l', this.path]);
    await this.#serve(options);
  }

  /** Ends daemon and mount, and removes the folders. */
  async close() {
    if (this.#daemon.exitCode === null && this.#daemon.signalCode === null) await this.kill();
    spawnSync('umount', ['-l', this.path]);
    rmSync(this.#folder, { recursive: true });
  }
}

module.exports = { FuseMount };
