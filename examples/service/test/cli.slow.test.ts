/** The terminal command, end to end: as a person types it, and as a script pipes into it. */
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { KeyGuardClient } from '@keyguard/core/client';
import { memoryKeyStore } from '@keyguard/core/memory';
import { folder, freePort, remove, runCli, startService, type Running } from './stage.ts';

vi.setConfig({ testTimeout: 60_000, hookTimeout: 60_000 });

const EMAIL = 'admin@example.com';
const PASSWORD = 'a long and quiet password';
const CANARY = 'sk-canary-of-the-terminal-0042';

describe('the terminal command', () => {
  let cwd: string;
  let port: number;
  let service: Running;
  const said: string[] = [];

  const cli = async (args: readonly string[], input?: string, environment: Record<string, string> = {}): Promise<{ code: number | string; output: string }> => {
    const result = await runCli(cwd, args, { KEYGUARD_URL: service.origin, XDG_CONFIG_HOME: join(cwd, 'config'), ...environment }, input);
    said.push(result.output);
    return result;
  };
  // oxlint-disable-next-line typescript/no-explicit-any -- tests look into many shapes
  const json = async (...args: readonly string[]): Promise<any> => jsonOf(args);
  // oxlint-disable-next-line typescript/no-explicit-any -- likewise
  const jsonOf = async (args: readonly string[], input?: string): Promise<any> => {
    const { code, output } = await cli(['--json', ...args], input);
    expect([args, code, output]).toEqual([args, 0, expect.any(String)]);
    return JSON.parse(output);
  };

  beforeAll(async () => {
    cwd = await folder();
    port = await freePort();
    service = await startService(cwd, { PORT: String(port), OPENAI_BASE_URL: 'http://127.0.0.1:9/v1' });
  });
  afterAll(async () => {
    await service.stop('SIGKILL');
    await remove(cwd);
  });

  it('says what to do when there is nobody signed in, nobody there, or nothing of that name', async () => {
    const cases: [string[], Record<string, string>, string][] = [
      [['devices', 'list'], {}, 'keyguard login  first'],
      [['logout'], {}, 'not signed in'],
      [['--url', 'not-a-url', 'devices', 'list'], {}, 'not the address of a server'],
      [['login', '--email', EMAIL], { KEYGUARD_URL: 'http://127.0.0.1:1', KEYGUARD_PASSWORD: PASSWORD }, 'Is it running?'],
      [['login', '--email', EMAIL], {}, 'Password is missing'],
      [['codes', 'create', '--expires', 'soon'], {}, '90s, 15m, 12h or 7d'],
      [['nothing'], {}, 'unknown command'],
    ];
    for (const [args, environment, words] of cases) {
      const { code, output } = await cli(args, '', environment);
      expect([args, code, output]).toEqual([args, 1, expect.stringContaining(words)]);
      expect(output).not.toContain('    at ');
    }
  });

  it('sets up from a pipe, keeps the session for its owner alone, and signs in and out', async () => {
    const wrong = await cli(['setup', '--email', EMAIL], `0000-0000\n${PASSWORD}\n`);
    expect([wrong.code, wrong.output]).toEqual([1, expect.stringContaining('not the setup code')]);
    const set = await cli(['setup'], `${service.setupCode!.toLowerCase()}\n${EMAIL}\n${PASSWORD}\n`);
    expect([set.code, set.output]).toEqual([0, expect.stringContaining(`Signed in at ${service.origin} as ${EMAIL}`)]);
    const file = join(cwd, 'config/keyguard/sessions.json');
    expect([statSync(file).mode & 0o777, statSync(join(cwd, 'config/keyguard')).mode & 0o777]).toEqual([0o600, 0o700]);
    expect(readFileSync(file, 'utf8')).not.toContain(PASSWORD);
    expect((await cli(['setup'], `${service.setupCode!}\n${EMAIL}\n${PASSWORD}\n`)).output).toContain('keyguard login');

    const { token } = JSON.parse(readFileSync(file, 'utf8'))[service.origin];
    expect((await cli(['logout'])).code).toBe(0);
    expect((await fetch(`${service.origin}/api/devices`, { headers: { authorization: `Bearer ${token}` } })).status).toBe(401);
    expect((await cli(['devices', 'list'])).output).toContain('login  first');
    expect((await cli(['login', '--email', EMAIL], 'not the password\n')).code).toBe(1);
    expect((await cli(['login'], undefined, { KEYGUARD_EMAIL: EMAIL, KEYGUARD_PASSWORD: PASSWORD })).code).toBe(0);
  });

  it('lets a device in, shows it, shuts it out, and shows what was done', async () => {
    const { code } = await json('codes', 'create', '--label', 'A phone', '--no-auto-approve', '--expires', '1h');
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    const { deviceId, keyId, status } = await client.enroll({ code });
    expect(status).toBe('pending');
    const listed = await cli(['devices', 'list']);
    expect(listed.output).toMatch(new RegExp(`^${deviceId} +A phone +pending +${keyId.slice(0, 12)} `, 'm'));
    expect((await cli(['devices', 'show', deviceId])).output).toContain(keyId);
    const limits = ['--label', 'A phone', '--requests-per-minute', '60', '--allow-models', 'gpt-4o,o3*', '--allow-from', '127.0.0.0/8,::1'];
    expect((await cli(['devices', 'update', deviceId, ...limits])).output).toContain('A phone is changed.');
    const limited = (await cli(['devices', 'show', deviceId])).output;
    for (const shown of ['60', 'gpt-4o, o3*', '127.0.0.0/8, ::1']) expect(limited).toContain(shown);
    expect((await cli(['devices', 'update', deviceId, '--requests-per-minute', 'none', '--allow-models', 'none', '--allow-from', 'none'])).code).toBe(0);
    expect((await cli(['devices', 'show', deviceId])).output).not.toContain('gpt-4o');
    expect((await cli(['devices', 'update', deviceId])).output).toContain('Say what to change');
    expect((await cli(['devices', 'update', deviceId, '--requests-per-minute', '0'])).code).toBe(1);
    for (const [verb, expected] of [['approve', 'active'], ['suspend', 'suspended'], ['resume', 'active'], ['revoke', 'revoked']] as const) {
      expect((await cli(['devices', verb, deviceId])).output).toContain(`A phone (key ${keyId.slice(0, 12)}…) is ${expected} now.`);
      expect((await client.status()).status).toBe(expected);
    }
    expect((await cli(['devices', 'rotation-code', deviceId])).output).toContain('A device that is revoked cannot replace its key.');
    const again = await cli(['devices', 'resume', deviceId]);
    expect([again.code, again.output]).toEqual([1, expect.stringContaining('A device that is revoked cannot be resumed.')]);
    expect((await cli(['devices', 'show', '00000000-0000-4000-8000-000000000000'])).code).toBe(1);

    const [newest] = await json('codes', 'list', '--limit', '1');
    expect(newest).toMatchObject({ label: 'A phone', uses: 1 });
    expect((await cli(['codes', 'revoke', newest.id])).code).toBe(0);
    expect((await cli(['codes', 'list'])).output).toContain('1 of 1');
    const actions = (await json('audit', '--limit', '11')).map(({ action, outcome }: { action: string; outcome: string }) => `${action} ${outcome}`);
    expect(actions).toEqual([
      'enrollment_code.revoke success',
      'device.read refused',
      'device.resume refused',
      'rotation_code.create refused',
      'device.revoke success',
      'device.resume success',
      'device.suspend success',
      'device.approve success',
      'device.update success',
      'device.update success',
      'device.enroll success',
    ]);
    expect((await cli(['audit', '--limit', '6'])).output).toMatch(/device\.revoke +success +user:/);
  });

  it('makes a code with which a device replaces its key', async () => {
    const { code } = await json('codes', 'create');
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    const { deviceId, keyId } = await client.enroll({ code });
    const { code: earlier } = await json('devices', 'rotation-code', deviceId);
    const { code: exit, output } = await cli(['devices', 'rotation-code', deviceId, '--expires', '1h']);
    expect([exit, output]).toEqual([0, expect.stringContaining('It is not shown again')]);
    const [latest] = output.split('\n') as [string];
    await expect(client.rotate({ code: earlier })).rejects.toMatchObject({ code: 'rotation_rejected' });
    const { keyId: newKeyId } = await client.rotate({ code: latest });
    expect(newKeyId).not.toBe(keyId);
    expect((await cli(['devices', 'list'])).output).toMatch(new RegExp(`^${deviceId} .* active +${newKeyId.slice(0, 12)} `, 'm'));
    expect((await cli(['devices', 'rotation-code', deviceId, '--expires', '2d'])).code).toBe(1);
    expect((await cli(['devices', 'rotation-code', '00000000-0000-4000-8000-000000000000'])).code).toBe(1);
    expect((await cli(['audit', '--limit', '4'])).output).toMatch(/device\.key_rotated +success +device:/);
  });

  it('keeps secrets: from a pipe or made, read back byte for byte, from and into a file, and gone', async () => {
    const set = await cli(['secrets', 'set', 'DB_PASSWORD', '--type', 'password', '--tag', 'prod'], 'first\n');
    expect([set.code, set.output]).toEqual([0, expect.stringContaining('DB_PASSWORD is stored as')]);
    expect((await cli(['secrets', 'set', 'DB_PASSWORD', '--reason', 'moved'], 'two\nlines \n')).output).toContain('Version 2 of DB_PASSWORD is stored.');
    expect((await cli(['secrets', 'get', 'DB_PASSWORD'])).output).toBe('two\nlines ');
    expect((await cli(['secrets', 'get', 'DB_PASSWORD', '--version', '1'])).output).toBe('first');
    expect((await cli(['secrets', 'set', 'TOKEN', '--generate', 'sk-{base62:20}'])).output).toMatch(/^sk-[0-9A-Za-z]{20}\n\nTOKEN is stored/);
    const file = join(cwd, 'secrets.env');
    writeFileSync(file, 'DB_PASSWORD=third\nNEW="a b"\n');
    expect((await cli(['secrets', 'import', file, '--dry-run'])).output).toContain('Nothing was written: 1 created, 1 updated, 0 unchanged, 0 invalid.');
    expect((await cli(['secrets', 'import', file])).output).toContain('Done: 1 created, 1 updated');
    expect((await cli(['secrets', 'export'])).output).toMatch(/^DB_PASSWORD='third'\nNEW='a b'\nTOKEN='sk-\w{20}'\n$/);
    const listed = await cli(['secrets', 'list', '--search', 'prod']);
    expect(listed.output).toMatch(/DB_PASSWORD +password +3 +- +prod/);
    expect(listed.output).not.toContain('third');
    expect((await cli(['secrets', 'rm', 'DB_PASSWORD', '--yes'])).output).toContain('Destroyed: DB_PASSWORD with all its versions.');
    expect([(await cli(['secrets', 'get', 'DB_PASSWORD'])).output]).toEqual([expect.stringContaining('There is no secret called DB_PASSWORD')]);
    expect((await cli(['secrets', 'set', 'X', '--value', 'x'])).output).toContain('unknown option');
    expect((await cli(['secrets', 'generate', '--length', '30', '--no-symbols'])).output).toMatch(/^[0-9A-Za-z]{30}\n/);
  });

  it('gives roles, makes programs with tokens of their own, and says who may not do what to themself', async () => {
    expect((await cli(['users', 'list', '--email', 'admin'])).output).toMatch(/admin@example\.com +admin +administrator/);
    await json('roles', 'create', 'deployer', 'projects:read,usage:read');
    const { id: assignment } = await json('users', 'grant', EMAIL, 'deployer', '--expires', '12h');
    expect((await cli(['users', 'roles', EMAIL])).output).toMatch(new RegExp(`^${assignment} +deployer +everywhere`, 'm'));
    const { code, output } = await cli(['users', 'grant', EMAIL, 'secrets_reader']);
    expect([code, output]).toEqual([1, expect.stringContaining('another administrator must do it')]);
    expect((await cli(['users', 'demote', EMAIL])).output).toContain('Somebody must administer');
    const made = await json('service-accounts', 'create', 'CI of the shop', 'projects:read', '--ip', '127.0.0.1,::1');
    const answer = await fetch(`${service.origin}/api/projects`, { headers: { authorization: `Bearer ${made.token}` } });
    expect([answer.status, await answer.json()]).toEqual([200, expect.objectContaining({ data: [] })]);
    expect((await cli(['service-accounts', 'list'])).output).toMatch(new RegExp(`CI of the shop +kgsa_${made.token_prefix}_… +projects:read +in use`));
    await json('service-accounts', 'disable', made.id);
    expect((await fetch(`${service.origin}/api/projects`, { headers: { authorization: `Bearer ${made.token}` } })).status).toBe(401);
  });

  it('calls the demo upstream until a provider key was stored, takes the key from a pipe, and never shows it', async () => {
    const { code } = await json('codes', 'create');
    const client = new KeyGuardClient({ origin: service.origin, keyStore: memoryKeyStore() });
    await client.enroll({ code });
    const chat = async (): Promise<Response> =>
      client.fetch(`${service.origin}/v1/chat/completions`, {
        method: 'POST',
        headers: { 'content-type': 'application/json' },
        body: JSON.stringify({ model: 'keyguard-demo', messages: [{ role: 'user', content: 'Who are you?' }] }),
      });
    expect(await (await chat()).text()).toContain('built-in demo upstream');
    expect((await cli(['keys', 'list'])).output).toContain('No provider keys yet');
    expect((await cli(['keys', 'add', 'openai'], 'a b\n')).code).toBe(1);
    const added = await cli(['keys', 'add', 'openai', '--name', 'Mine'], `${CANARY}\n`);
    expect([added.code, added.output]).toEqual([0, expect.stringContaining('ends in 0042')]);
    expect((await cli(['keys', 'list'])).output).toMatch(/openai +Mine +0042 +in use/);
    const [{ id }] = await json('keys', 'list');
    expect((await cli(['keys', 'test', id])).output).toContain('The provider does not take it: unreachable.');
    // Nobody listens at the provider's address here: no value is put into use that it did not take.
    expect(await cli(['keys', 'rotate', id], `${CANARY}-next-4711\n`)).toMatchObject({ code: 1, output: expect.stringContaining('nothing was changed') });
    expect(await cli(['keys', 'rotate', id, '--no-verify', '--overlap', '1h', '--reason', 'every quarter'], `${CANARY}-next-4711\n`)).toMatchObject({ code: 0, output: expect.stringContaining('Version 2 of Mine, which ends in 4711, is in use.') });
    expect((await cli(['keys', 'versions', id])).output).toMatch(/2 +4711 +active .*every quarter[^]*1 +0042 +overlap/);
    expect((await cli(['keys', 'restore', id, '1', '--no-verify'])).output).toContain('Version 3 of Mine, which ends in 0042, is in use.');
    expect((await cli(['keys', 'rotate', 'everything'])).output).toContain('Say kek, audit-mac, or the id of a provider key.');
    const second = await jsonOf(['keys', 'add', 'openai', '--no-default', '--expires', '90d', '--rotate-every', '1'], `${CANARY.slice(0, -1)}3\n`);
    expect((await cli(['keys', 'list', '--rotation-due'])).output).toContain('No provider keys like that.');
    expect((await cli(['keys', 'list'])).output).toMatch(/openai +openai +0043 +kept +1 /);
    expect((await cli(['keys', 'default', second.id])).output).toContain('ends in 0043 from now on');
    expect((await cli(['keys', 'revoke', second.id, '--yes'])).code).toBe(0);
    expect((await cli(['keys', 'revoke', id])).code).toBe(0);
    // A key that was revoked is not replaced by a demonstration.
    const refused = await chat();
    expect([refused.status, await refused.text()]).toEqual([403, expect.stringContaining('provider_key_missing')]);
    expect(said.join('\n')).not.toContain(CANARY);
    expect(service.output()).not.toContain(CANARY);
    // The arguments of a process are everyone's to read, so no command takes a secret there.
    expect((await cli(['keys', 'add', 'openai', '--value', 'x'])).output).toContain('unknown option');
  });
});
