/**
 * A judge that we did not write: Go's `golang.org/x/mod/sumdb`, the code behind the checksum database of the Go modules. It runs
 * where `go` and Debian's package `golang-golang-x-mod-dev` are installed; what it said of the vectors is recorded in them. Where it
 * is missing the run says so, unless KEYGUARD_REQUIRE_JUDGES=1 makes that a failure.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

const GOPATH = '/usr/share/gocode';

export interface Answer {
  readonly ok: boolean;
  readonly error?: string;
  readonly text?: string;
  readonly note?: string;
  readonly root?: string;
  readonly proof?: readonly string[];
  /** `<name>+<key hash>` of each signature that verified. */
  readonly signed?: readonly string[];
}

export type Judge = (questions: readonly object[]) => Answer[];

/** Builds the judge, or answers `null` where there is no Go or not that package. @throws Error where the judge is required */
export function sumdbJudge(): Judge | null {
  if (!existsSync(join(GOPATH, 'src/golang.org/x/mod/sumdb/note')) || spawnSync('go', ['version']).status !== 0) {
    const missing = 'there is no go, or no golang.org/x/mod (Debian: golang-go, golang-golang-x-mod-dev)';
    if (process.env['KEYGUARD_REQUIRE_JUDGES'] === '1') throw new Error(`KEYGUARD_REQUIRE_JUDGES=1, and ${missing}.`);
    console.warn(`NOT RUN: the live judgement of Go's sumdb, for ${missing}. What it said before is in the vectors.`);
    return null;
  }
  const folder = mkdtempSync(join(tmpdir(), 'keyguard-sumdb-'));
  const program = join(folder, 'judge');
  const env = { ...process.env, GOPATH, GO111MODULE: 'off', GOFLAGS: '', CGO_ENABLED: '0', GOCACHE: process.env['GOCACHE'] ?? join(tmpdir(), 'keyguard-go-cache') };
  const built = spawnSync('go', ['build', '-o', program, fileURLToPath(new URL('./sumdb/main.go', import.meta.url))], { env, encoding: 'utf8' });
  if (built.status !== 0) throw new Error(`The judge does not build: ${built.stderr}`);
  return (questions) => {
    const run = spawnSync(program, { input: JSON.stringify(questions), encoding: 'utf8', maxBuffer: 1 << 28 });
    if (run.status !== 0) throw new Error(`The judge failed: ${run.stderr}`);
    return JSON.parse(run.stdout) as Answer[];
  };
}
