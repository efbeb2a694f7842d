/** The vectors, judged in Python by `vectors/runner`, which shares no code with this package; where there is a python3. */
import { execFileSync, spawnSync } from 'node:child_process';
import { cpSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { describe, expect, it } from 'vitest';

const vectors = fileURLToPath(new URL('../../../vectors/', import.meta.url));
const script = join(vectors, 'runner/run.py');
const env = { ...process.env, PYTHONDONTWRITEBYTECODE: '1' };

function hasPython(): boolean {
  try {
    execFileSync('python3', ['-c', 'import sys; assert sys.version_info >= (3, 9)'], { stdio: 'ignore' });
    return true;
  } catch {
    return false;
  }
}

interface Verdict {
  readonly status: number | null;
  readonly output: string;
}

function run(...words: string[]): Verdict {
  const { status, stdout, stderr } = spawnSync('python3', [script, ...words], { encoding: 'utf8', env });
  return { status, output: stdout + stderr };
}

const files = readdirSync(vectors, { recursive: true, encoding: 'utf8' }).filter((name) => name.endsWith('.json'));

it('every file of vectors has its judge in Python', () => {
  const source = readFileSync(script, 'utf8');
  expect(files.filter((name) => !source.includes(`"${name}":`))).toEqual([]);
});

if (hasPython()) {
  describe('the runner in Python', () => {
    it('agrees with every case', () => {
      const { status, output } = run();
      expect(output).not.toMatch(/^wrong/m);
      expect(status).toBe(0);
      const [, passed] = /^vectors: (\d+) passed, 0 failed$/m.exec(output) ?? [];
      console.log(`vectors judged in Python: ${passed} passed, 0 failed`);
      expect(Number(passed)).toBeGreaterThanOrEqual(2200);
    }, 120_000);

    it.each([
      ['vault.json', '"plaintext": "6', '"plaintext": "7'],
      ['audit.json', '"mac": "', '"mac": "00'],
      ['canonical-json.json', '"canonical": "0"', '"canonical": "-0"'],
      ['request-signing.json', 'keyguard-v1', 'keyguard-v2'],
      ['request-signing.json', '"timestamp": "1735689600"', '"timestamp": "1735689601"'],
      ['request-signing.json', '"result": "invalid"', '"result": "valid"'],
      ['request-signing.json', '"code": "signature_invalid"', '"code": "malformed_request"'],
      ['rfc9421-ecdsa-p256.json', '"valid": true', '"valid": false'],
      ['rotation.json', '"nextMs": 17', '"nextMs": 16'],
      ['fingerprint.json', '"cores": "to 16"', '"cores": "to 32"'],
      ['merkle.json', '"result": "invalid"', '"result": "valid"'],
      ['bytes.json', '"bytes": "ff"', '"bytes": "fe"'],
      ['keys.json', '"keyId": "y', '"keyId": "z'],
      ['canonical.json', '"code": "malformed_request"', '"code": "unsupported_version"'],
      ['one-time-code.json', '"hash": "', '"hash": "A'],
      ['checkpoint.json', '"size": 8', '"size": 9'],
      ['wycheproof/ecdsa_secp256r1_sha256_p1363_test.json', '"result": "invalid"', '"result": "valid"'],
    ])('notices one wrong value in %s', (name, from, to) => {
      const folder = mkdtempSync(join(tmpdir(), 'keyguard-vectors-'));
      try {
        cpSync(vectors, folder, { recursive: true });
        const path = join(folder, name);
        const compact = readFileSync(path, 'utf8').replaceAll(/" *: */g, '": ');
        expect(compact.includes(from)).toBe(true);
        writeFileSync(path, compact.replace(from, to));
        const { status, output } = run('--vectors', folder, name);
        expect(output).toMatch(/^wrong /m);
        expect(status).toBe(1);
      } finally {
        rmSync(folder, { recursive: true });
      }
    }, 120_000);
  });
} else if (process.env['KEYGUARD_REQUIRE_JUDGES'] === '1') {
  throw new Error('KEYGUARD_REQUIRE_JUDGES=1, and there is no python3 of 3.9 or later on the path.');
} else {
  console.warn('NOT RUN: the judgement of the vectors in Python, for there is no python3 of 3.9 or later.');
}
