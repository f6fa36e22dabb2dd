/**
 * Lines on disk, in order, until somebody has taken them: one file, to which this only appends.
 *
 * A line is `{"n": 7, "call": …}`, or `{"done": 7}`: the broker has everything up to number 7. A
 * process may die anywhere. What `append` has promised is in the file then, and what the file does
 * not say to be done is sent again. A file with nothing to send is emptied, one with little of that
 * is rewritten.
 */

import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { open, rename, rm, type FileHandle } from "node:fs/promises";
import { join } from "node:path";

import type { Call } from "./message.js";

const REWRITE_BYTES = 16 * 1024 * 1024; // of lines that are done, before the file is rewritten
const MOST_BYTES = 1024 ** 3; // of what waits: the disk is not the spool's alone
const NEWLINE = 0x0a;

/** Where a line is in the file. */
interface Place {
  n: number;
  at: number;
  bytes: number;
}

/** A spool that cannot be used, and what to do. */
export class SpoolError extends Error {
  override name = "SpoolError";
}

/** A spool that has no room; the message is not on the disk, and not sent. */
export class SpoolFull extends SpoolError {
  override name = "SpoolFull";
}

export class Spool {
  #waiting: Place[] = [];
  #held = 0; // bytes of what waits or is being written
  #size = 0;
  #last = 0;
  #queued: { text: string; place: Place; resolve(): void; reject(error: unknown): void }[] = [];
  #turn: Promise<void> = Promise.resolve(); // of whoever uses the file
  #torn = false; // half a line may stand at its end

  private constructor(
    private readonly folder: string,
    private file: FileHandle,
    private readonly lock: string,
    private readonly mostBytes: number,
  ) {}

  /** Open the spool of a folder, which one process may use at a time. Throws SpoolError. */
  static async open(folder: string, mostBytes = MOST_BYTES): Promise<Spool> {
    try {
      return await Spool.#open(folder, mostBytes);
    } catch (error) {
      if (error instanceof SpoolError) throw error;
      const step = "give a folder on a local disk that this process may write";
      throw new SpoolError(`the spool ${folder}: ${(error as Error).message}; ${step}`, {
        cause: error,
      });
    }
  }

  static async #open(folder: string, mostBytes: number): Promise<Spool> {
    mkdirSync(folder, { recursive: true, mode: 0o700 });
    const lock = takeLock(folder);
    let spool: Spool | undefined;
    try {
      const file = await open(join(folder, "spool.jsonl"), "a+", 0o600);
      spool = new Spool(folder, file, lock, mostBytes);
      await spool.#read();
      await syncFolder(folder);
    } catch (error) {
      if (spool) await spool.close();
      else rmSync(lock, { force: true });
      throw error;
    }
    return spool;
  }

  /** How many calls are on the disk, and not marked as done. */
  get length(): number {
    return this.#waiting.length;
  }

  /** The number of the oldest of these. */
  get first(): number | undefined {
    return this.#waiting[0]?.n;
  }

  /** The number of the last call that was given to `append`. */
  get last(): number {
    return this.#last;
  }

  /** Write a call to the disk; return when it is there for sure. Throws SpoolFull. */
  async append(call: Call): Promise<void> {
    const n = this.#last + 1;
    const text = `${JSON.stringify({ n, call })}\n`;
    const place = { n, at: 0, bytes: Buffer.byteLength(text) };
    if (this.#held + place.bytes > this.mostBytes) {
      throw new SpoolFull(
        `${this.folder} is full: ${this.#held} bytes wait in it, and it may hold` +
          ` ${this.mostBytes} bytes; the message is not sent`,
      );
    }
    this.#last = n;
    this.#held += place.bytes;
    return new Promise((resolve, reject) => {
      this.#queued.push({ text, place, resolve, reject });
      if (this.#queued.length === 1) void this.#alone(() => this.#write());
    });
  }

  /** Return when what was given to `append` before is on the disk, or was refused. */
  written(): Promise<void> {
    return this.#alone(async () => undefined);
  }

  /** Read the calls that are next, as many as fit; one at least, if there is one. */
  head(most: number, bytes: number): Promise<{ n: number; call: Call }[]> {
    return this.#alone(async () => {
      const found = [];
      let total = 0;
      for (const place of this.#waiting.slice(0, most)) {
        total += place.bytes;
        if (found.length > 0 && total > bytes) break;
        found.push(JSON.parse((await this.#line(place)).toString("utf8")));
      }
      return found;
    });
  }

  /** Note that the broker has everything up to this number. */
  markDone(n: number): Promise<void> {
    return this.#alone(async () => {
      const left = this.#waiting.findIndex((place) => place.n > n);
      const gone = this.#waiting.splice(0, left < 0 ? this.#waiting.length : left);
      this.#held -= sum(gone);
      if (this.#waiting.length === 0) return this.#empty();
      // Not synced: if the line is lost, a repeat is sent.
      this.#size += await this.#put(`${JSON.stringify({ done: n })}\n`);
      const [first] = this.#waiting;
      if (first && first.at > REWRITE_BYTES && first.at > this.#size / 2) await this.#rewrite();
    });
  }

  async close(): Promise<void> {
    await this.#alone(() => this.file.close());
    rmSync(this.lock, { force: true });
  }

  /** One after the other: who reads, writes or rewrites the file. */
  #alone<T>(act: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(act);
    this.#turn = mine.then(
      () => undefined,
      () => undefined,
    );
    return mine;
  }

  /** Write what is queued by now, and sync it once. */
  async #write(): Promise<void> {
    const queued = this.#queued.splice(0);
    try {
      await this.#put(queued.map(({ text }) => text).join(""));
      await this.file.datasync();
    } catch (error) {
      this.#torn = true;
      this.#held -= sum(queued.map(({ place }) => place));
      for (const each of queued) each.reject(error);
      return;
    }
    for (const { place, resolve } of queued) {
      this.#waiting.push({ ...place, at: this.#size });
      this.#size += place.bytes;
      resolve();
    }
  }

  /** Append; return how many bytes. After an error the next call first cuts off what it left. */
  async #put(text: string): Promise<number> {
    if (this.#torn) await this.file.truncate(this.#size);
    this.#torn = true;
    await this.file.appendFile(text);
    this.#torn = false;
    return Buffer.byteLength(text);
  }

  async #line({ at, bytes }: Place): Promise<Buffer> {
    const { buffer, bytesRead } = await this.file.read(Buffer.alloc(bytes), 0, bytes, at);
    if (bytesRead < bytes) throw new SpoolError(`${this.folder}: somebody cut the spool off`);
    return buffer;
  }

  async #empty(): Promise<void> {
    await this.file.truncate(0);
    this.#size = 0;
  }

  /** Write what still waits into a new file, which takes the place of the old one. */
  async #rewrite(): Promise<void> {
    const name = join(this.folder, "spool.jsonl");
    const next = await open(`${name}.new`, "w+", 0o600);
    const moved: Place[] = [];
    let size = 0;
    for (const place of this.#waiting) {
      await next.appendFile(await this.#line(place));
      moved.push({ ...place, at: size });
      size += place.bytes;
    }
    await next.datasync();
    await rename(`${name}.new`, name);
    await syncFolder(this.folder);
    await this.file.close();
    await next.close();
    this.file = await open(name, "a+", 0o600);
    [this.#waiting, this.#size] = [moved, size];
  }

  /** Read the file as an earlier process left it; cut off a line that it did not finish. */
  async #read(): Promise<void> {
    await rm(join(this.folder, "spool.jsonl.new"), { force: true });
    const bytes = await this.file.readFile();
    let done = 0;
    for (let at = 0; at < bytes.length; ) {
      const end = bytes.indexOf(NEWLINE, at);
      if (end < 0) break; // `append` promised nothing of it
      done = Math.max(done, this.#take(bytes.subarray(at, end + 1), at));
      this.#size = at = end + 1;
    }
    this.#waiting = this.#waiting.filter(({ n }) => n > done);
    this.#held = sum(this.#waiting);
    if (this.#size < bytes.length) await this.file.truncate(this.#size);
  }

  /** Read one line; return the number up to which it says that all is done, else 0. */
  #take(line: Buffer, at: number): number {
    let read: { n?: number; done?: number };
    try {
      read = JSON.parse(line.toString("utf8")) as typeof read;
    } catch {
      throw new SpoolError(
        `${this.folder}/spool.jsonl: byte ${at} begins a line that is no JSON; delete that line,` +
          " and the messages of the others are sent",
      );
    }
    if (read.n !== undefined) this.#waiting.push({ n: read.n, at, bytes: line.length });
    this.#last = Math.max(this.#last, read.n ?? 0, read.done ?? 0);
    return read.done ?? 0;
  }
}

function sum(places: Place[]): number {
  return places.reduce((total, { bytes }) => total + bytes, 0);
}

/** Make a file that names this process. Whoever died without removing it holds no lock. */
function takeLock(folder: string): string {
  const path = join(folder, "lock");
  const own = identity(process.pid);
  for (let tries = 0; ; tries++) {
    try {
      writeFileSync(path, own, { flag: "wx" });
      return path;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "EEXIST" || tries === 5) throw error;
    }
    const holder = readFileSync(path, "utf8");
    const pid = Number(holder.split(" ")[0]);
    if (pid > 0 && holder === identity(pid)) {
      throw new SpoolError(`${folder} is in use by process ${pid}: give each sender its own`);
    }
    rmSync(path, { force: true });
  }
}

/** A process by its pid and, on Linux, the time of its start: pids come back. */
function identity(pid: number): string {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")")).split(" ");
    return fields[1] === "Z" ? "" : `${pid} ${fields[20]}`;
  } catch {
    return isAlive(pid) ? `${pid}` : "";
  }
}

function isAlive(pid: number): boolean {
  try {
    return process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}

async function syncFolder(folder: string): Promise<void> {
  const opened = await open(folder, "r");
  try {
    await opened.sync();
  } finally {
    await opened.close();
  }
}
