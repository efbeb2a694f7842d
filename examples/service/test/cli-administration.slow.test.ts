/** The rest of the terminal command against one service: people, sessions, second factors, roles, projects, programs, shares, the log and the keys. */
import { spawn } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest';
import { codeOfStep, stepAt } from '../src/auth/totp.ts';
import { backends, runCli, startService, type Backend, type Deployment, type Running } from './stage.ts';
import { fromBase32 } from './people/stage.ts';

vi.setConfig({ testTimeout: 120_000, hookTimeout: 120_000 });

const CLI = fileURLToPath(new URL('../src/cli/main.ts', import.meta.url));
const ADMIN = { email: 'admin@example.com', password: 'a long and quiet password' };
const ADA = { email: 'ada@example.com', password: 'another long and quiet password' };
const NOBODY = '00000000-0000-4000-8000-000000000000';

interface Ran {
  readonly code: number | string;
  readonly output: string;
}

describe.each(backends())('the terminal command, on %s', (_title, open) => {
  let backend: Backend;
  let deployment: Deployment;
  let service: Running;

  /** As one of the two, who have folders of their own for their sessions. */
  const as = (who: 'admin' | 'ada') => async (args: readonly string[], input: string = '', environment: Record<string, string> = {}): Promise<Ran> =>
    runCli(deployment.folder, args, { KEYGUARD_URL: service.origin, XDG_CONFIG_HOME: join(deployment.folder, `config-${who}`), ...environment }, input);
  const [admin, ada] = [as('admin'), as('ada')];
  const said = async (ran: Promise<Ran>, words: string | RegExp): Promise<string> => {
    const { code, output } = await ran;
    expect({ code, output }).toEqual({ code: 0, output: typeof words === 'string' ? expect.stringContaining(words) : expect.stringMatching(words) });
    return output;
  };
  const refused = async (ran: Promise<Ran>, words: string | RegExp): Promise<void> => {
    const { code, output } = await ran;
    expect({ code, output }).toEqual({ code: 1, output: typeof words === 'string' ? expect.stringContaining(words) : expect.stringMatching(words) });
    expect(output).not.toContain('    at ');
  };
  // oxlint-disable-next-line typescript/no-explicit-any -- tests look into many shapes
  const json = async (run: typeof admin, ...args: readonly string[]): Promise<any> => {
    const { code, output } = await run(['--json', ...args]);
    expect([args, code, output]).toEqual([args, 0, expect.any(String)]);
    return JSON.parse(output);
  };

  beforeAll(async () => {
    backend = await open();
    deployment = await backend.deploy();
    service = await startService(deployment.folder, { ...deployment.environment, KEYGUARD_ADMIN_EMAIL: ADMIN.email, KEYGUARD_ADMIN_PASSWORD: ADMIN.password });
    await said(admin(['login', '--email', ADMIN.email], `${ADMIN.password}\n`), 'Signed in');
  });
  afterAll(async () => {
    await service?.stop('SIGKILL');
    await backend.stop();
  });

  it('sets, shows and ends budgets', async () => {
    await said(admin(['budgets', 'show', 'project', 'default']), 'There is no budget');
    await said(admin(['budgets', 'set', 'project', 'default', '--period', 'month', '--requests', '1000', '--dollars', '2.50']), /requests +0 +1000\s+tokens +0 +any\s+cost +\$0\.00 +\$2\.50/);
    expect(await json(admin, 'budgets', 'show', 'project', 'default')).toMatchObject({ budget: { period: 'month', max_requests: 1000, max_tokens: null, max_cost_micros: 2_500_000 } });
    await refused(admin(['budgets', 'set', 'project', 'default', '--period', 'month']), 'names no limit');
    await refused(admin(['budgets', 'set', 'project', 'default', '--period', 'month', '--dollars', '1.2345678']), 'amount of dollars');
    await refused(admin(['budgets', 'show', 'person', 'default']), 'device or project');
    await refused(admin(['budgets', 'show', 'device', NOBODY]), /no|not/i);
    await said(admin(['budgets', 'end', 'project', 'default']), 'no budget any more');
    await said(admin(['budgets', 'show', 'project', 'default']), 'There is no budget');
  });

  it('invites somebody, who comes in once', async () => {
    const role = ((await json(admin, 'roles', 'list')) as { id: string; name: string }[]).find(({ name }) => name === 'viewer');
    const invited = await said(admin(['invite', ADA.email, '--role', role!.id, '--expires', '2h']), 'It is not shown again');
    const [token] = invited.split('\n') as [string];
    await refused(ada(['accept'], `kgi_${'A'.repeat(43)}\nAda\n${ADA.password}\n`), 'not valid');
    await said(ada(['accept', '--name', 'Ada'], `${token}\n${ADA.password}\n`), `keyguard login --email ${ADA.email}`);
    await refused(ada(['accept', '--name', 'Ada'], `${token}\n${ADA.password}\n`), 'not valid');
    await said(ada(['login', '--email', ADA.email], `${ADA.password}\n`), ADA.email);
    await said(admin(['users', 'roles', ADA.email]), /viewer +everywhere/);
    await refused(ada(['invite', 'eve@example.com']), 'Only an administrator');
  });

  it('shows where one is signed in, and ends one session or all others', async () => {
    const [first] = await json(ada, 'sessions', 'list');
    await said(ada(['login', '--email', ADA.email], `${ADA.password}\n`), 'Signed in');
    await said(ada(['sessions', 'list']), new RegExp(`\\(this\\)[\\s\\S]*${String(first.id)}`));
    await refused(ada(['sessions', 'end']), 'Name one session, or say --others.');
    await said(ada(['sessions', 'end', '--others']), 'Ended: 1.');
    const left = await json(ada, 'sessions', 'list');
    expect(left.map(({ id, is_current: current }: { id: string; is_current: boolean }) => [id === first.id, current])).toEqual([[false, true]]);
    await refused(ada(['sessions', 'list', '--user', NOBODY]), /administrator|nothing of that id/);
    const { id: adaId } = (await json(admin, 'users', 'list', '--email', 'ada'))[0];
    expect((await json(admin, 'sessions', 'list', '--user', adaId)).map(({ id }: { id: string }) => id)).toEqual([left[0].id]);
    await said(admin(['sessions', 'end', left[0].id]), 'Ended.');
    await refused(ada(['sessions', 'list']), 'Your session has ended');
    await said(ada(['login', '--email', ADA.email], `${ADA.password}\n`), 'Signed in');
  });

  it('sets up a second factor, asks for it from then on, and removes it', async () => {
    let secret = '';
    // Answers when it has seen the secret, as a person with an authenticator does.
    const enabled = await new Promise<Ran>((resolve) => {
      const child = spawn(process.execPath, ['--conditions=@keyguard/source', CLI, 'second-factor', 'enable'], {
        cwd: deployment.folder,
        env: { PATH: process.env['PATH'] ?? '', HOME: deployment.folder, KEYGUARD_URL: service.origin, XDG_CONFIG_HOME: join(deployment.folder, 'config-ada'), KEYGUARD_PASSWORD: ADA.password },
      });
      let output = '';
      const hear = (text: string): void => {
        output += text;
        if (secret !== '' || !output.includes('otpauth://')) return;
        secret = /^ {2}([A-Z2-7]{32})$/m.exec(output)![1]!;
        child.stdin.end(`${codeOfStep(fromBase32(secret), stepAt(Date.now()))}\n`);
      };
      child.stdout.setEncoding('utf8').on('data', hear);
      child.stderr.setEncoding('utf8').on('data', hear);
      child.once('close', (code) => resolve({ code: code ?? 'killed', output }));
    });
    expect(enabled).toEqual({ code: 0, output: expect.stringContaining('Keep these backup codes') });
    const backupCodes = enabled.output.slice(enabled.output.indexOf('not shown again:')).split('\n').filter((line) => /^[\w-]{8,}$/.test(line));
    expect(backupCodes.length).toBeGreaterThan(4);
    // The session that asked is no more: the command goes on with the one that took its place.
    await said(ada(['sessions', 'list']), '(this)');

    await refused(ada(['login', '--email', ADA.email, '--code', '000000'], `${ADA.password}\n`), /not accepted|code/i);
    await refused(ada(['login', '--email', ADA.email], `${ADA.password}\n`), 'Code of your second factor is missing.');
    await said(ada(['login', '--email', ADA.email, '--code', backupCodes[0]!], `${ADA.password}\n`), 'Signed in');
    await refused(ada(['login', '--email', ADA.email, '--code', backupCodes[0]!], `${ADA.password}\n`), /not accepted|code/i);
    await said(ada(['second-factor', 'disable'], `${ADA.password}\n${backupCodes[1]!}\n`), 'Removed.');
    await said(ada(['sessions', 'list']), '(this)');
    await said(ada(['login', '--email', ADA.email], `${ADA.password}\n`), 'Signed in');
  });

  it('gives and takes roles, disables, promotes and demotes', async () => {
    await json(admin, 'roles', 'create', 'operator', 'projects:read', '--description', 'Looks after things.');
    const { id: assignment } = await json(admin, 'users', 'grant', ADA.email, 'operator');
    await refused(admin(['roles', 'delete', 'operator']), 'Somebody holds this role');
    await said(admin(['users', 'revoke', ADA.email, assignment]), 'Taken away.');
    expect((await json(admin, 'users', 'roles', ADA.email)).map(({ role }: { role: string }) => role)).toEqual(['viewer']);
    await said(admin(['roles', 'delete', 'operator']), 'Deleted.');
    await refused(admin(['roles', 'delete', 'operator']), 'There is no role operator');
    await refused(admin(['users', 'grant', 'nobody@example.com', 'viewer']), 'There is nobody with the address nobody@example.com.');
    await said(admin(['users', 'promote', ADA.email]), 'administers now.');
    await refused(admin(['users', 'disable', ADA.email]), 'This person administers');
    await refused(admin(['users', 'demote', ADA.email]), 'the operator takes it away on the host (keyguard administrators remove)');
    await said(ada(['users', 'demote', ADA.email]), 'administers no longer.');
    await said(admin(['users', 'disable', ADA.email]), 'is out.');
    await refused(ada(['devices', 'list']), 'Your session has ended');
    await said(admin(['users', 'list', '--email', 'ada']), /Ada +disabled/);
    await said(admin(['users', 'enable', ADA.email]), 'may sign in again');
    await said(ada(['login', '--email', ADA.email], `${ADA.password}\n`), 'Signed in');
  });

  it('asks two administrators where there are two, and says so', async () => {
    await said(admin(['users', 'promote', ADA.email]), 'administers now.');
    const invited = await json(admin, 'invite', 'third@example.com', '--administrator');
    const come = (...more: readonly string[]): Promise<Ran> => admin(['accept', '--name', 'Third'], `${[invited.token, ...more].join('\n')}\n`, { KEYGUARD_PASSWORD: ADA.password });
    await refused(come(), 'A second administrator must approve this invitation first');
    await refused(admin(['invitations', 'approve', invited.id]), 'Another administrator than the one who made it');
    await said(ada(['invitations', 'list']), /third@example\.com +yes/);
    const lost = (await said(ada(['invitations', 'approve', invited.id]), 'Approved: third@example.com')).split('\n')[0]!;
    const { second_token: second } = await json(ada, 'invitations', 'approve', invited.id);
    await refused(come(), /This takes a second token as well[\s\S]*Second token, of the administrator who approved the invitation is missing/);
    await refused(come(lost), 'The second token is not the one of the approval that counts');
    await said(come(second), 'Welcome.');
    await said(admin(['users', 'demote', 'third@example.com']), /Written down, until [\s\S]*users demote third@example\.com/);
    const [asked] = await json(ada, 'users', 'requests');
    await said(ada(['users', 'requests']), new RegExp(`${asked.id} +users demote ${asked.user_id}`));
    await refused(ada(['users', 'withdraw', asked.id]), 'nothing of that id');
    await said(admin(['users', 'withdraw', asked.id]), 'Taken back.');
    await said(admin(['users', 'demote', 'third@example.com']), 'Written down');
    await said(ada(['users', 'demote', 'third@example.com']), 'administers no longer.');
    await said(ada(['users', 'demote', ADA.email]), 'administers no longer.');
  });

  it('makes and ends projects, and programs with their tokens', async () => {
    const project = (await said(ada(['projects', 'create', 'Shop', '--environment', 'staging']), /^[0-9a-f-]{36}\n$/)).trim();
    await said(ada(['projects', 'list']), new RegExp(`${project} +Shop +staging +-`));
    await said(ada(['projects', 'archive', project, '--yes']), 'Archived.');
    await said(ada(['projects', 'list']), /Shop +staging +20/);
    await refused(ada(['projects', 'archive', NOBODY]), 'nothing of that id');
    const made = await json(ada, 'service-accounts', 'create', 'Robot', 'projects:read', '--expires', '1d');
    const status = async (token: string): Promise<number> => (await fetch(`${service.origin}/api/projects`, { headers: { authorization: `Bearer ${token}` } })).status;
    const rotated = (await said(ada(['service-accounts', 'rotate', made.id, '--overlap', '10m']), 'not shown again')).split('\n')[0]!;
    expect([await status(made.token), await status(rotated)]).toEqual([200, 200]);
    const last = (await json(ada, 'service-accounts', 'rotate', made.id)).token;
    expect([await status(made.token), await status(rotated), await status(last)]).toEqual([401, 401, 200]);
    await said(ada(['service-accounts', 'disable', made.id]), 'Its tokens are refused.');
    expect(await status(last)).toBe(401);
    await said(ada(['service-accounts', 'enable', made.id]), 'Its tokens count again.');
    expect(await status(last)).toBe(200);
    await said(ada(['service-accounts', 'delete', made.id]), 'Deleted.');
    expect(await status(last)).toBe(401);
  });

  it('shares a secret, takes it back, and makes a link that opens once', async () => {
    await said(admin(['secrets', 'set', 'SHARED'], 'the value of it\n'), 'is stored');
    const { id: share } = await json(admin, 'secrets', 'share', 'SHARED', ADA.email, '--expires', '1h');
    await said(admin(['secrets', 'shares', 'SHARED']), new RegExp(`${share} +${ADA.email} +read`));
    await said(ada(['secrets', 'shared']), /SHARED +\w+ +admin/);
    const [{ secret }] = await json(ada, 'secrets', 'shared');
    expect(await ada(['secrets', 'get', secret.id])).toEqual({ code: 0, output: 'the value of it' });
    await refused(admin(['secrets', 'share', 'SHARED', 'nobody@example.com']), /nobody|no one|There is/i);
    await said(admin(['secrets', 'unshare', 'SHARED', share]), 'Taken back.');
    await said(ada(['secrets', 'shared']), 'Nobody shares anything with you.');
    await refused(ada(['secrets', 'get', secret.id]), 'You may see this secret, but have no secrets:reveal on it.');
    const link = await json(admin, 'secrets', 'link', 'SHARED', '--views', '1', '--expires', '1h');
    const openLink = async (): Promise<Response> => fetch(`${service.origin}/api/shares/${link.token}/open`, { method: 'POST', headers: { 'content-type': 'application/json' }, body: '{}' });
    const opened = await openLink();
    expect([opened.status, await opened.json()]).toEqual([200, expect.objectContaining({ value: 'the value of it', views_left: 0 })]);
    expect((await openLink()).status).toBe(404);
  });

  it('reads the log by its filters, tells one story, proves an entry and finds the log intact', async () => {
    const { id: adaId } = (await json(admin, 'users', 'list', '--email', 'ada'))[0];
    const filtered = await json(admin, 'audit', '--actor', `user:${adaId}`, '--action', 'service_account.', '--outcome', 'success');
    expect(filtered.map(({ action }: { action: string }) => action)).toEqual(['delete', 'enable', 'disable', 'rotate', 'rotate', 'create'].map((verb) => `service_account.${verb}`));
    expect(await json(ada, 'audit', '--actor', 'user:somebody-else')).toEqual([]);
    const story = await json(admin, 'audit', 'timeline', '--user', adaId, '--limit', '500');
    expect(story[0]).toMatchObject({ action: 'invitation.accept' });
    await said(admin(['audit', '--action', 'secret.share']), /secret\.share +success +user:/);
    const note = await said(admin(['audit', 'checkpoint', '--now']), /\n\n— /);
    expect(await said(admin(['audit', 'checkpoint']), '— ')).toBe(note);
    const key = (await said(admin(['audit', 'verifier-key']), /^\S+\+[0-9a-f]{8}\+\S+\n$/)).trim();
    expect(note).toContain(key.slice(0, key.indexOf('+')));
    const proof = JSON.parse((await admin(['audit', 'proof', '3'])).output);
    expect(proof).toMatchObject({ seq: 3, checkpoint: expect.stringContaining(note.trim()) });
    await refused(admin(['audit', 'proof', '999999']), 'nothing of that id');
    const exported = (await said(admin(['audit', 'export']), '"checkpoint"')).trim().split('\n').map((line) => JSON.parse(line) as object);
    expect(exported.length).toBeGreaterThan(20);
    await said(admin(['audit', 'export', '--format', 'csv', '--action', 'invitation.']), /invitation\.create/);
    await refused(ada(['audit', 'export']), /whole|may not|administrator|audit:read/);
    await said(admin(['audit', 'verify']), /The log is intact\.[\s\S]*All MACs are right\./);
    await refused(ada(['audit', 'verify']), 'Only an administrator');
  });

  it('rotates the keys while everything stays readable, destroys what is out of use, and chains under a new key', async () => {
    await said(admin(['keys', 'rotation']), 'There was none yet');
    const done = await said(admin(['keys', 'rotate', 'kek', '--wait']), /^Done: \d+ values have moved to kek-/);
    const [, from] = /(kek-[0-9a-f-]{36}) is disabled/.exec(done)!;
    await said(admin(['keys', 'rotation']), 'Done:');
    await said(admin(['keys', 'keks']), new RegExp(`primary[\\s\\S]*${from} +disabled`));
    expect((await admin(['secrets', 'get', 'SHARED'])).output).toBe('the value of it');
    await said(admin(['keys', 'destroy-kek', from!, '--yes']), `${from} is destroyed.`);
    await said(admin(['keys', 'keks']), new RegExp(`${from} +destroyed`));
    await refused(admin(['keys', 'destroy-kek', from!, '--yes']), /destroyed|disabled|nothing/);
    await said(admin(['keys', 'rotate', 'audit-mac', '--wait']), 'has taken over');
    await refused(ada(['keys', 'rotate', 'kek']), 'Only an administrator');
  });

  it('verifies the stopped service, where no other process has it', async () => {
    const offline = (): Promise<Ran> => admin(['audit', 'verify', '--offline', deployment.folder], '', { ...deployment.environment });
    await refused(offline(), /in use|is running|another KeyGuard/);
    await refused(admin(['administrators', 'list', '--folder', deployment.folder], '', { ...deployment.environment }), /in use|is running|another KeyGuard/);
    expect(await service.stop()).toBe(0);
    // The way out where one of two is gone.
    const onHost = (...args: readonly string[]): Promise<Ran> => admin(['administrators', ...args, '--folder', deployment.folder], '', { ...deployment.environment });
    await refused(onHost('add', 'nobody@example.com'), 'There is nobody with the address');
    await said(onHost('add', ADA.email), 'administers once the service is started');
    await refused(onHost('add', ADA.email), 'administers already');
    await said(onHost('list'), /ada@example\.com +\S+ +administers/);
    await said(onHost('remove', ADA.email, '--yes'), 'administers no longer');
    await refused(onHost('remove', ADA.email, '--yes'), 'does not administer');
    await refused(onHost('remove', ADMIN.email, '--yes'), 'Somebody must administer');
    await said(offline(), /Verifying with the checkpoints in[\s\S]*The log is intact\./);
    writeFileSync(join(deployment.folder, 'data', 'checkpoints', 'checkpoints.jsonl'), '');
    await said(offline(), 'There are no checkpoints in');
  });
});
