/**
 * Everything that the README shows, run: its programs are the files of this example, its commands are typed in its order against a
 * service on an empty folder.
 */
import { execFile, spawn, type ChildProcess } from 'node:child_process';
import { readdir, readFile, mkdtemp, rm } from 'node:fs/promises';
import { createServer, type AddressInfo } from 'node:net';
import { createServer as createHttpServer, type Server } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { setTimeout as wait } from 'node:timers/promises';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { KeyGuardClient } from '@keyguard/core';
import { memoryKeyStore } from '@keyguard/core/memory';
import { webCryptoRandom } from '@keyguard/core/system';
import { generateEnrollmentCode, hashEnrollmentCode } from '@keyguard/server-verifier';
import { app, registry } from '../src/backend.ts';

const root = fileURLToPath(new URL('../../..', import.meta.url));
const source = (name: string): Promise<string> => readFile(join(root, 'examples/quickstart/src', name), 'utf8');
const readme = await readFile(join(root, 'README.md'), 'utf8');

function blocks(language: string): string[] {
  return [...readme.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\`$`, 'gm'))].map(([, text]) => text!);
}

// What a stranger's shell holds: nothing of ours, and nothing that makes these commands part of a test run.
const shell = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith('KEYGUARD_') && !name.startsWith('VITEST')));

const commands = blocks('sh').flatMap((block) => block.trim().split('\n'));

async function freePort(): Promise<number> {
  const server = createServer();
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  const { port } = server.address() as AddressInfo;
  await new Promise((resolve) => server.close(resolve));
  return port;
}

describe('the programs of the README', () => {
  it('are the files of this example, to the letter', async () => {
    const [chat, browser, backend] = blocks('ts');
    expect(chat).toBe(await source('chat.ts'));
    expect(backend).toBe(await source('backend.ts'));
    expect(browser).toContain("from '@keyguard/storage-indexeddb'");
    expect(blocks('ts')).toHaveLength(3);
  });

  it('are as short as it says', async () => {
    expect((await source('chat.ts')).trim().split('\n').length).toBeLessThanOrEqual(20);
    const lines = (await source('backend.ts')).split('\n').filter((line) => line !== '' && !line.startsWith('import'));
    expect(lines.length).toBeLessThanOrEqual(10);
    expect((await source('main.ts')).split('\n').filter((line) => !/^(?:$|import|\s*\*|\/\*\*|\/\/)/.test(line)).length).toBeLessThanOrEqual(30);
  });
});

it('main.ts enrolls, signs, verifies, and refuses the second use', async () => {
  const { code, output } = await run(['--silent', '--filter', '@keyguard/example-quickstart', 'run', 'start'], {});
  expect({ code, output }).toEqual({ code: 0, output: "verified: POST /api/orders by alice's laptop\nthe same request again: replay_detected\n" });
});

describe('the backend of the README', () => {
  let server: Server;
  beforeAll(async () => {
    server = createHttpServer(app);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  });
  afterAll(() => new Promise((resolve) => server.close(resolve)));

  it('enrolls a device and lets it through, and nobody else', { timeout: 20_000 }, async () => {
    const { port } = server.address() as AddressInfo;
    const direct = `http://127.0.0.1:${port}`;
    // The program is for localhost:4000; here it listens on whatever port is free.
    const guard = new KeyGuardClient({
      origin: 'http://localhost:4000',
      keyStore: memoryKeyStore(),
      fetch: (url, init) => fetch(String(url).replace('http://localhost:4000', direct), init),
    });
    const code = generateEnrollmentCode(webCryptoRandom());
    registry.addCode({ codeHash: hashEnrollmentCode(code)!, ownerId: 'alice', expiresAtMs: Date.now() + 60_000 });
    const enroll = async (): Promise<string> => {
      try {
        return (await guard.enroll({ code, label: 'laptop' })).status;
      } catch (error) {
        // As the README says: for its first seconds a store in memory cannot know what was used before.
        const { retryAfterMs } = error as { retryAfterMs?: number };
        if (retryAfterMs === undefined) throw error;
        await wait(retryAfterMs);
        return enroll();
      }
    };
    expect(await enroll()).toBe('active');
    expect(await (await guard.fetch('http://localhost:4000/api/hello')).json()).toEqual({ hello: 'laptop' });
    expect((await fetch(`${direct}/api/hello`)).status).toBe(400);
  });
});

interface Finished {
  readonly code: number;
  readonly output: string;
}

/** Runs the package manager as the README does, but for the download by npx. */
function run(args: readonly string[], environment: Record<string, string>, input = ''): Promise<Finished> {
  return new Promise((resolve) => {
    const child = execFile('pnpm', args, { cwd: root, env: { ...shell, ...environment } }, (error, stdout) =>
      resolve({ code: typeof error?.code === 'number' ? error.code : error === null ? 0 : 1, output: stdout }),
    );
    child.stderr?.on('data', (text: string) => process.env['KEYGUARD_VERBOSE'] && process.stderr.write(text));
    child.stdin?.end(input);
  });
}

describe('the commands of the README, in their order', { timeout: 120_000 }, () => {
  const KEY = 'sk-test-0123456789abcdefghij';
  let folder: string;
  let service: ChildProcess;
  let environment: Record<string, string>;
  let keysBefore: string[];
  const keyFolder = join(root, '.keyguard');
  const listKeys = (): Promise<string[]> => readdir(keyFolder).catch(() => []);
  let printed = '';
  let enrollmentCode = '';
  let device = '';

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'keyguard-readme-'));
    keysBefore = await listKeys();
    const port = await freePort();
    environment = {
      HOME: folder,
      XDG_CONFIG_HOME: join(folder, 'config'),
      PORT: String(port),
      KEYGUARD_URL: `http://localhost:${port}`,
      KEYGUARD_DATA_DIR: join(folder, 'data'),
      KEYGUARD_EMAIL: 'admin@example.com',
      KEYGUARD_PASSWORD: 'a password of some length',
    };
  });
  afterAll(async () => {
    if (service?.exitCode === null) {
      const gone = new Promise((resolve) => service.once('close', resolve));
      process.kill(-service.pid!, 'SIGTERM');
      await gone;
    }
    for (const name of await listKeys()) if (!keysBefore.includes(name)) await rm(join(keyFolder, name), { recursive: true });
    await rm(folder, { recursive: true, force: true });
  });

  async function start(): Promise<void> {
    const { KEYGUARD_EMAIL: _, KEYGUARD_PASSWORD: __, KEYGUARD_URL: ___, ...own } = environment;
    // A group of its own, so that the package manager's children end with it.
    service = spawn('pnpm', ['start'], { cwd: root, detached: true, env: { ...shell, OPENAI_API_KEY: '', ...own }, stdio: ['ignore', 'pipe', 'inherit'] });
    await new Promise<void>((resolve, reject) => {
      service.stdout!.setEncoding('utf8').on('data', (text: string) => {
        printed += text;
        if (printed.includes('"msg":"ready"')) resolve();
      });
      service.once('close', (code) => reject(new Error(`the service ended with ${code}:\n${printed}`)));
    });
    environment['KEYGUARD_SETUP_CODE'] = /setup code:\s+(\S+)/.exec(printed)![1]!;
  }

  it.each(commands)('%s', async (command) => {
    const typed = command.replace('DEVICE', device);
    const assigned = typed.startsWith('KEYGUARD_CODE=… ') ? { KEYGUARD_CODE: enrollmentCode } : {};
    const [line, file] = typed.replace('KEYGUARD_CODE=… ', '').split(' < ') as [string, string?];
    expect(line).toMatch(/^npx -y pnpm@12\.21\.0 /);
    const args = line.split(' ').slice(3);
    if (args[0] === 'test') return; // You are looking at it.
    if (args[0] === 'start') return start();

    const { code, output } = await run(args, { ...environment, ...assigned }, file === undefined ? '' : `${KEY}\n`);
    expect({ code, output }).toMatchObject({ code: 0 });
    if (args.includes('codes')) enrollmentCode = /^[0-9A-Z-]{31}$/m.exec(output)![0];
    if (args[0] === 'chat') {
      expect(output).toContain('demo upstream');
      expect(output).toContain('Say hello from an enrolled device.');
      // Once more without a code, as the README says.
      expect(await run(args, environment)).toMatchObject({ code: 0, output: expect.stringContaining('demo upstream') as string });
    }
    if (args.includes('list')) device = /^[0-9a-f-]{36}/m.exec(output)![0];
    if (args.includes('suspend') || args.includes('revoke')) {
      const refused = await run(['--silent', 'chat'], environment);
      expect(refused.code).not.toBe(0);
      expect(refused.output).not.toContain('demo upstream');
    }
    if (args.includes('resume')) expect(await run(['--silent', 'chat'], environment)).toMatchObject({ code: 0 });
    expect(output).not.toContain(KEY);
  });

  it('the service never printed a secret but the setup code', () => {
    expect(printed).not.toContain(KEY);
    expect(printed).not.toContain(enrollmentCode);
    expect(printed).not.toContain(environment['KEYGUARD_PASSWORD']);
  });
});
