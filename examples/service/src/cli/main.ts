/**
 * The terminal command: sets up, signs in, and administers devices, codes and provider keys. It talks HTTP to the service and to
 * nothing else, so it works against a remote one as well.
 */
import { Command, InvalidArgumentError, Option } from 'commander';
import { explain } from '../explanation.ts';
import { addAccess } from './access.ts';
import { COMMAND, createApi, originOf, SessionEndedError, type Api, type Json } from './api.ts';
import { addAdministratorCommands } from './administrators.ts';
import { addAuditCommands } from './audit.ts';
import { addBackupCommands } from './backup-commands.ts';
import { addBudgetCommands } from './budgets.ts';
import { addKeyCommands } from './key-commands.ts';
import { addPeopleCommands } from './people-commands.ts';
import { addProviderKeys } from './provider-keys.ts';
import { addSecretCommands } from './secrets.ts';
import { sessionFile } from './session-file.ts';
import { addSharing } from './sharing.ts';
import { ask, askSecret, CommandError, confirm, print, printJson, remark, table, when } from './terminal.ts';

const DEFAULT_URL = 'http://localhost:3000';
const KEY_CHARACTERS = 12;

const sessions = sessionFile(process.env);
const program = new Command('keyguard');

interface GlobalOptions {
  readonly url?: string;
  readonly json?: boolean;
}

function api(): Api {
  return createApi(originOf(program.opts<GlobalOptions>().url ?? process.env['KEYGUARD_URL'] ?? DEFAULT_URL), sessions);
}

/** Prints for a program with `--json`, for a person else. */
function show(value: unknown, text: () => string): void {
  if (program.opts<GlobalOptions>().json === true) printJson(value);
  else print(text());
}

const text = (value: unknown): string | null => (typeof value === 'string' || typeof value === 'number' ? String(value) : null);

function wholeNumber(given: string): number {
  if (!/^[1-9][0-9]{0,8}$/.test(given)) throw new InvalidArgumentError('It must be a whole number, at least 1.');
  return Number(given);
}

const UNIT_SECONDS: Readonly<Record<string, number>> = { s: 1, m: 60, h: 3600, d: 86_400 };

function duration(given: string): number {
  const [, count, unit] = /^([1-9][0-9]{0,5})([smhd])$/.exec(given) ?? [];
  if (count === undefined || unit === undefined) throw new InvalidArgumentError('Give a number and a unit: 90s, 15m, 12h or 7d.');
  return Number(count) * UNIT_SECONDS[unit]!;
}

const expires = (description: string): Option => new Option('--expires <time>', description).argParser(duration).default(900, '15m');

const path = (...parts: readonly string[]): string => `/api/${parts.map(encodeURIComponent).join('/')}`;

async function signIn(server: Api, email: string, password: string, code?: string): Promise<void> {
  const { headers, json } = await server.send('POST', '/api/auth/sign-in/email', { email, password });
  const token = headers.get('set-auth-token');
  if (token === null) throw new CommandError('The server gave no session: is it a KeyGuard?');
  let whole: string | null = token;
  if (json['second_factor'] === 'required') {
    const proven = await server.send('POST', '/api/auth/step-up', { code: code ?? (await ask('Code of your second factor')) }, token);
    whole = proven.headers.get('set-auth-token');
    if (whole === null) throw new CommandError('The server gave no session: is it a KeyGuard?');
  }
  await sessions.write(server.origin, { email, token: whole });
  show(json, () => `Signed in at ${server.origin} as ${email}.`);
  if (json['second_factor'] === 'setup_required') remark(`This service demands a second factor of you. Set one up:  ${COMMAND} second-factor enable`);
}

program
  .description('Administers a KeyGuard service.')
  .option('--url <address>', `the address of the service (default: $KEYGUARD_URL, or ${DEFAULT_URL})`)
  .option('--json', 'print JSON, for programs')
  .showHelpAfterError('(add --help to see what there is)');

program
  .command('setup')
  .description('make the first administrator, with the one-time code that the service printed at its start')
  .option('--code <code>', 'the setup code (or $KEYGUARD_SETUP_CODE)')
  .option('--email <email>', 'your e-mail address (or $KEYGUARD_EMAIL)')
  .addHelpText('after', '\nThe password is asked for, taken from $KEYGUARD_PASSWORD, or read from a pipe.')
  .action(async (options: { code?: string; email?: string }) => {
    const server = api();
    const code = options.code ?? process.env['KEYGUARD_SETUP_CODE'] ?? (await ask('Setup code'));
    const email = options.email ?? process.env['KEYGUARD_EMAIL'] ?? (await ask('E-mail address'));
    const password = process.env['KEYGUARD_PASSWORD'] ?? (await askNewPassword());
    await server.send('POST', '/api/setup', { code, email, password });
    remark(`The administrator ${email} was created.`);
    await signIn(server, email, password);
    remark(`Next, make a code for your first device:  ${COMMAND} codes create`);
  });

async function askNewPassword(): Promise<string> {
  const password = await askSecret('Password, at least 12 characters');
  if (process.stdin.isTTY && (await askSecret('The same again')) !== password) throw new CommandError('The two passwords are not the same.');
  return password;
}

program
  .command('login')
  .description('sign in; the session is kept for a day')
  .option('--email <email>', 'your e-mail address (or $KEYGUARD_EMAIL)')
  .option('--code <code>', 'the code of your second factor, where you have one; it is good once')
  .addHelpText('after', '\nThe password is asked for, taken from $KEYGUARD_PASSWORD, or read from a pipe.')
  .action(async (options: { email?: string; code?: string }) => {
    const email = options.email ?? process.env['KEYGUARD_EMAIL'] ?? (await ask('E-mail address'));
    await signIn(api(), email, process.env['KEYGUARD_PASSWORD'] ?? (await askSecret('Password')), options.code);
  });

program
  .command('logout')
  .description('end the session, here and on the server')
  .action(async () => {
    const server = api();
    if ((await sessions.read(server.origin)) === null) throw new CommandError(`You are not signed in at ${server.origin}.`);
    try {
      await server.sendSigned('POST', '/api/auth/sign-out', {});
    } catch (error) {
      // It ended before: that is what was wanted.
      if (!(error instanceof SessionEndedError)) throw error;
    } finally {
      await sessions.write(server.origin, null);
    }
    show({ signed_out: true }, () => 'Signed out.');
  });

const codes = program.command('codes').description('the codes with which devices enroll');

codes
  .command('create')
  .description('make a code; it is shown once')
  .option('--label <text>', 'what to call the devices that use it')
  .option('--max-uses <count>', 'how many devices may use it', wholeNumber, 1)
  .addOption(expires('for how long it is good, such as 15m, 12h or 7d; at most 30d'))
  .option('--no-auto-approve', 'its devices wait until they are approved')
  .action(async (options: { label?: string; maxUses: number; expires: number; autoApprove: boolean }) => {
    const created = await api().sendSigned('POST', path('enrollment-codes'), {
      ...(options.label !== undefined && { label: options.label }),
      max_uses: options.maxUses,
      expires_in_s: options.expires,
      auto_approve: options.autoApprove,
    });
    show(created, () => {
      const uses = created['max_uses'] === 1 ? 'one device' : `${String(created['max_uses'])} devices`;
      const waits = created['auto_approve'] === true ? '' : `\nIts devices wait for  ${COMMAND} devices approve <id>`;
      return `${String(created['code'])}\n\nFor ${uses}, until ${when(created['expires_at'])}. It is not shown again.${waits}`;
    });
  });

codes
  .command('list')
  .description('list codes, newest first')
  .option('--limit <count>', 'at most so many', wholeNumber, 50)
  .action(async ({ limit }: { limit: number }) => {
    const rows = await api().list(path('enrollment-codes'), limit);
    show(rows, () =>
      rows.length === 0
        ? `No codes yet:  ${COMMAND} codes create`
        : table(
            ['ID', 'LABEL', 'USED', 'APPROVES', 'EXPIRES', 'REVOKED'],
            rows.map((row) => [text(row['id']), text(row['label']), `${String(row['uses'])} of ${String(row['max_uses'])}`,
              row['auto_approve'] === true ? 'at once' : 'later', when(row['expires_at']), when(row['revoked_at'])]),
          ),
    );
  });

codes
  .command('revoke')
  .description('make a code worthless')
  .argument('<id>')
  .action(async (id: string) => {
    await api().sendSigned('POST', path('enrollment-codes', id, 'revoke'), {});
    show({ id, revoked: true }, () => 'The code is worthless now. Devices that used it stay as they are.');
  });

const NONE = 'none' as const;
// A parser of options cannot answer with null: commander takes that for an option without a value.
const listOrNone = (given: string): readonly string[] | typeof NONE => (given === NONE ? NONE : given.split(',').map((part) => part.trim()));
const orNull = <T>(given: T | typeof NONE): T | null => (given === NONE ? null : (given as T));

interface DeviceUpdate {
  readonly label?: string;
  readonly requestsPerMinute?: number | typeof NONE;
  readonly allowModels?: readonly string[] | typeof NONE;
  readonly allowFrom?: readonly string[] | typeof NONE;
}

const devices = program.command('devices').description('the devices that may, or may not, call');

devices
  .command('list')
  .description('list devices, newest first')
  .option('--status <status>', 'only pending, active, suspended or revoked ones')
  .option('--limit <count>', 'at most so many', wholeNumber, 50)
  .action(async ({ status, limit }: { status?: string; limit: number }) => {
    const rows = await api().list(status === undefined ? path('devices') : `${path('devices')}?${new URLSearchParams({ status })}`, limit);
    show(rows, () =>
      rows.length === 0
        ? `No devices. A device needs a code:  ${COMMAND} codes create`
        : table(
            ['ID', 'LABEL', 'STATUS', 'KEY', 'LAST SEEN', 'ENROLLED'],
            rows.map((row) => [text(row['id']), text(row['label']), statusOf(row), keyOf(row), when(row['last_seen_at']), when(row['created_at'])]),
          ),
    );
  });

devices
  .command('show')
  .description('all about one device')
  .argument('<id>')
  .action(async (id: string) => {
    const device = await api().sendSigned('GET', path('devices', id));
    show(device, () => table(['FIELD', 'VALUE'], Object.entries(device).map(([name, value]) => [name, Array.isArray(value) ? value.join(', ') : value === null ? null : String(value)])));
  });

const statusOf = (device: Json): string => (device['intact'] === false ? `${String(device['status'])} (changed!)` : String(device['status']));
const keyOf = (device: Json): string => String(device['key_id'] ?? '-').slice(0, KEY_CHARACTERS);

devices
  .command('approve')
  .description('let a pending device in, after comparing its key')
  .argument('<id>')
  .option('--yes', 'do not ask')
  .action(async (id: string, { yes = false }: { yes?: boolean }) => {
    const server = api();
    if (!yes) {
      const device = await server.sendSigned('GET', path('devices', id));
      if (!(await confirm(`Does the device itself show a key that begins with ${keyOf(device)}?`))) throw new CommandError('Not approved.');
    }
    move(await server.sendSigned('POST', path('devices', id, 'approve'), {}));
  });

for (const [name, description] of [
  ['suspend', 'stop a device for now; its running calls end'],
  ['resume', 'let a suspended device call again'],
  ['revoke', 'stop a device for good; its running calls end'],
] as const) {
  devices
    .command(name)
    .description(description)
    .argument('<id>')
    .action(async (id: string) => move(await api().sendSigned('POST', path('devices', id, name), {})));
}

devices
  .command('update')
  .description('set the limits of a device, or what it is called; "none" takes one away')
  .argument('<id>')
  .option('--label <text>', 'what to call it')
  .option('--requests-per-minute <count>', 'how often it may call', (given) => (given === NONE ? NONE : wholeNumber(given)))
  .option('--allow-models <names>', 'only these models, with commas between them; a * at the end stands for any rest', listOrNone)
  .option('--allow-from <ranges>', 'only from these addresses and CIDR ranges, with commas between them', listOrNone)
  .action(async (id: string, given: DeviceUpdate) => {
    const change = {
      ...(given.label !== undefined && { label: orNull(given.label) }),
      ...(given.requestsPerMinute !== undefined && { requests_per_minute: orNull(given.requestsPerMinute) }),
      ...(given.allowModels !== undefined && { allowed_models: orNull(given.allowModels) }),
      ...(given.allowFrom !== undefined && { ip_allowlist: orNull(given.allowFrom) }),
    };
    if (Object.keys(change).length === 0) throw new CommandError(`Say what to change:  ${COMMAND} devices update --help`);
    const device = await api().sendSigned('PATCH', path('devices', id), change);
    show(device, () => `${text(device['label']) ?? id} is changed. It holds within a second everywhere.`);
  });

devices
  .command('rotation-code')
  .description('make a code with which a device replaces its key; it is shown once')
  .argument('<id>')
  .addOption(expires('for how long it is good, at most 24h'))
  .action(async (id: string, { expires }: { expires: number }) => {
    const created = await api().sendSigned('POST', path('devices', id, 'rotation-codes'), { expires_in_s: expires });
    show(created, () => `${String(created['code'])}\n\nFor this device and one new key, until ${when(created['expires_at'])}. It is not shown again, and earlier ones are worthless now.`);
  });

function move(device: Json): void {
  show(device, () => `${text(device['label']) ?? String(device['id'])} (key ${keyOf(device)}…) is ${String(device['status'])} now.`);
}

addSharing(addSecretCommands(program, { api, show, path, text, wholeNumber, duration }), { api, show, path, duration, wholeNumber });

const keys = program.command('keys').description('the provider keys that devices use and never see, and the keys under which they are sealed');
addKeyCommands(keys, { api, show, path, duration });
addProviderKeys(keys, { api, show, path, text, duration, wholeNumber });
addBudgetCommands(program, { api, show, path, wholeNumber });
addPeopleCommands(program, { api, show, duration, askNewPassword });
addBackupCommands(program, { show });
addAdministratorCommands(program, { show });

addAccess(program, { api, show, path, duration, wholeNumber });
addAuditCommands(program, { api, show, text, wholeNumber });

try {
  await program.parseAsync();
} catch (error) {
  // Of its own, Node prints an error with all its members, and a driver's have the row in them.
  remark(error instanceof CommandError ? error.message : explain(error));
  process.exitCode = 1;
}
