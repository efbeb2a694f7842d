/** `keyguard invite`, `accept`, `sessions` and `second-factor`: people, as they come in and stay in. */
import type { Command } from 'commander';
import { COMMAND, RefusedError, type Answer, type Api, type Json } from './api.ts';
import { ask, askSecret, CommandError, confirm, remark, table, when } from './terminal.ts';

export interface PeopleCommandOptions {
  readonly api: () => Api;
  readonly show: (value: unknown, text: () => string) => void;
  readonly duration: (given: string) => number;
  readonly askNewPassword: () => Promise<string>;
}

const text = (value: unknown): string | null => (typeof value === 'string' ? value : null);
const codesOf = (json: Json): readonly string[] => json['backup_codes'] as string[];

export function addPeopleCommands(program: Command, { api, show, duration, askNewPassword }: PeopleCommandOptions): void {
  program
    .command('invite')
    .description('make an invitation, and hand its token over yourself; it is shown once')
    .argument('<email>')
    .option('--administrator', 'the person administers from the start')
    .option('--role <id...>', 'roles that the person gets')
    .option('--expires <time>', 'for how long it is good, such as 12h or 7d; at most 30d', duration, duration('3d'))
    .action(async (email: string, { administrator = false, role = [], expires }: { administrator?: boolean; role?: string[]; expires: number }) => {
      const made = await api().sendSigned('POST', '/api/invitations', { email, role_ids: role, is_administrator: administrator, expires_in_s: expires });
      show(made, () => `${String(made['token'])}\n\nFor ${String(made['email'])}, until ${when(made['expires_at'])}. It is not shown again. They run  ${COMMAND} accept`);
    });

  const invitations = program.command('invitations').description('who was invited, and has not come in yet');

  invitations
    .command('list')
    .description('list invitations, newest first')
    .action(async () => {
      const rows = await api().list('/api/invitations', 200);
      show(rows, () =>
        table(
          ['ID', 'E-MAIL', 'ADMINISTERS', 'UNTIL', 'ACCEPTED', 'REVOKED', 'APPROVED'],
          rows.map((row) => [text(row['id']), text(row['email']), row['is_administrator'] === true ? 'yes' : 'no', when(row['expires_at']), when(row['accepted_at']), when(row['revoked_at']), when(row['approved_at'])]),
        ),
      );
    });

  invitations
    .command('approve')
    .description('stand for an invitation of another administrator, as the second one, and hand the second token over yourself; it is shown once')
    .argument('<id>')
    .action(async (id: string) => {
      const approved = await api().sendSigned('POST', `/api/invitations/${encodeURIComponent(id)}/approve`, {});
      show(
        approved,
        () =>
          `${String(approved['second_token'])}\n\nApproved: ${String(approved['email'])} comes in with this and the token of the invitation, until ${when(approved['expires_at'])}. ` +
          `Give it to the person themself, and not by who invited them: whoever has both comes in.\n` +
          `It is not shown again; approving again makes another one, and this one worthless. They run  ${COMMAND} accept`,
      );
    });

  program
    .command('accept')
    .description('come in with the token of an invitation, and a second one where it takes two; they are asked for or read from a pipe')
    .option('--name <name>', 'your name')
    .action(async ({ name }: { name?: string }) => {
      const token = await askSecret('Token of the invitation');
      const called = name ?? (await ask('Your name'));
      const password = process.env['KEYGUARD_PASSWORD'] ?? (await askNewPassword());
      const server = api();
      const come = (more: Json): Promise<Answer> => server.send('POST', '/api/invitations/accept', { token, name: called, password, ...more });
      const { json } = await come({}).catch(async (error: unknown) => {
        if (!(error instanceof RefusedError) || error.code !== 'four_eyes_required') throw error;
        remark(error.message);
        return come({ second_token: await askSecret('Second token, of the administrator who approved the invitation') });
      });
      show(json, () => `Welcome. Sign in with  ${COMMAND} login --email ${String(json['email'])}`);
    });

  const sessions = program.command('sessions').description('where you are signed in');

  sessions
    .command('list')
    .description('list live sessions, newest first')
    .option('--user <id>', 'of somebody else, for administrators')
    .action(async ({ user }: { user?: string }) => {
      const rows = await api().list(`/api/sessions${user === undefined ? '' : `?user_id=${encodeURIComponent(user)}`}`, 200);
      show(rows, () =>
        table(
          ['ID', 'SINCE', 'LAST USED', 'ADDRESS', 'PROGRAM', 'SECOND FACTOR'],
          rows.map((row) => [`${String(row['id'])}${row['is_current'] === true ? ' (this)' : ''}`, when(row['started_at']), when(row['last_used_at']), text(row['ip']),
            text(row['user_agent'])?.slice(0, 40) ?? null, when(row['second_factor_at'])]),
        ),
      );
    });

  sessions
    .command('end')
    .description('end a session, or all of yours but this one')
    .argument('[id]')
    .option('--others', 'all of yours but this one')
    .action(async (id: string | undefined, { others = false }: { others?: boolean }) => {
      if ((id === undefined) !== others) throw new CommandError('Name one session, or say --others.');
      const server = api();
      const ended = others ? await server.sendSigned('POST', '/api/sessions/end-others', {}) : await server.sendSigned('DELETE', `/api/sessions/${encodeURIComponent(id!)}`);
      show(ended, () => (others ? `Ended: ${String(ended['ended'])}.` : 'Ended.'));
    });

  const factor = program.command('second-factor').description('an authenticator beside your password');

  factor
    .command('enable')
    .description('set up an authenticator; your other sessions end')
    .action(async () => {
      const server = api();
      const password = process.env['KEYGUARD_PASSWORD'] ?? (await askSecret('Password'));
      const begun = await server.sendSigned('POST', '/api/auth/second-factor', { password });
      remark(`Add this to your authenticator:\n\n  ${String(begun['secret'])}\n  ${String(begun['uri'])}\n`);
      const activated = await server.sendSigned('POST', '/api/auth/second-factor/activate', { code: await ask('Its code of now') });
      show(activated, () => `It counts from now on. Keep these backup codes; each is good once, and they are not shown again:\n\n${codesOf(activated).join('\n')}`);
    });

  factor
    .command('disable')
    .description('remove your second factor')
    .action(async () => {
      if (!(await confirm('Your password alone will then let you in. Remove it?'))) throw new CommandError('Not removed.');
      const password = process.env['KEYGUARD_PASSWORD'] ?? (await askSecret('Password'));
      const server = api();
      await server.sendSigned('POST', '/api/auth/second-factor/disable', { password, code: await ask('Code') });
      show({ disabled: true }, () => 'Removed.');
    });
}
