/** `keyguard users`, `roles`, `projects` and `service-accounts`: who is there, and who may do what. */
import type { Command } from 'commander';
import { COMMAND, type Api, type Json } from './api.ts';
import { CommandError, confirm, table, when } from './terminal.ts';

export interface AccessTools {
  readonly api: () => Api;
  readonly show: (value: unknown, text: () => string) => void;
  readonly path: (...parts: readonly string[]) => string;
  /** `12h` in seconds. */
  readonly duration: (given: string) => number;
  readonly wholeNumber: (given: string) => number;
}

const MANY = 10_000;
const textOf = (value: unknown): string | null => (typeof value === 'string' || typeof value === 'number' ? String(value) : null);
const listOf = (value: unknown): string => (value as readonly string[]).join(' ');
const ahead = (seconds: number): string => new Date(Date.now() + seconds * 1000).toISOString();
const separated = (given: string): readonly string[] => given.split(',').map((part) => part.trim());

/** Adds the four to `program`. */
export function addAccess(program: Command, tools: AccessTools): void {
  addUsers(program.command('users').description('people: who they are, and who may come in'), tools);
  addRoles(program.command('roles').description('what may be granted'), tools);
  addProjects(program.command('projects').description('what devices, provider keys and secrets are grouped by'), tools);
  addServiceAccounts(program.command('service-accounts').description('programs with tokens of their own'), tools);
}

/** A person by e-mail address or id, or a service account by id. */
async function subjectId(server: Api, who: string): Promise<string> {
  if (!who.includes('@')) return who;
  const found = await server.list(`/api/users?email=${encodeURIComponent(who)}`, MANY);
  const exact = found.find(({ email }) => email === who.toLowerCase());
  if (exact === undefined) throw new CommandError(`There is nobody with the address ${who}.`);
  return String(exact['id']);
}

async function roleId(server: Api, nameOrId: string): Promise<string> {
  const found = (await server.list('/api/roles', MANY)).find(({ id, name }) => id === nameOrId || name === nameOrId);
  if (found === undefined) throw new CommandError(`There is no role ${nameOrId}:  ${COMMAND} roles list`);
  return String(found['id']);
}

function addUsers(users: Command, { api, show, path, duration, wholeNumber }: AccessTools): void {
  users
    .command('list')
    .description('list people, newest first')
    .option('--email <start>', 'only those whose address begins with this')
    .option('--limit <count>', 'at most so many', wholeNumber, 50)
    .action(async ({ email, limit }: { email?: string; limit: number }) => {
      const rows = await api().list(`/api/users${email === undefined ? '' : `?email=${encodeURIComponent(email)}`}`, limit);
      show(rows, () =>
        table(
          ['ID', 'E-MAIL', 'NAME', 'IS', 'SINCE'],
          rows.map((row) => [textOf(row['id']), textOf(row['email']), textOf(row['name']), standing(row), when(row['created_at'])]),
        ),
      );
    });

  const change = (name: string, description: string, method: 'POST' | 'PUT' | 'DELETE', last: string, done: (email: string) => string): void => {
    users
      .command(name)
      .description(description)
      .argument('<person>', 'e-mail address or id')
      .action(async (who: string) => {
        const server = api();
        const changed = await server.sendSigned(method, path('users', await subjectId(server, who), last), method === 'POST' ? {} : undefined);
        // Where two must ask for it, the first one is told so.
        show(changed, () => ('requested_by' in changed ? `Written down, until ${when(changed['expires_at'])}. Another administrator must run the same:  ${COMMAND} users ${name} ${who}` : done(String(changed['email']))));
      });
  };
  change('disable', 'let a person in no longer: sessions, devices and programs stop at once', 'POST', 'disable', (email) => `${email} is out.`);
  change('enable', 'let a disabled person in again', 'POST', 'enable', (email) => `${email} may sign in again. Devices stay suspended:  ${COMMAND} devices list --status suspended`);
  change('promote', 'make a person an administrator', 'PUT', 'administrator', (email) => `${email} administers now.`);
  change('demote', 'let a person administer no longer', 'DELETE', 'administrator', (email) => `${email} administers no longer.`);

  users
    .command('requests')
    .description('list who shall administer, or no longer, by the word of one administrator: another one must run the same')
    .action(async () => {
      const rows = await api().list('/api/administrator-requests', MANY);
      show(rows, () =>
        table(
          ['ID', 'TO BE RUN', 'ASKED BY', 'UNTIL'],
          rows.map((row) => [textOf(row['id']), `users ${row['kind'] === 'make' ? 'promote' : 'demote'} ${String(row['user_id'])}`, textOf(row['requested_by']), when(row['expires_at'])]),
        ),
      );
    });

  users
    .command('withdraw')
    .description('take back what you have asked for, which another administrator has not yet')
    .argument('<request>', 'its id, as  users requests  shows it')
    .action(async (id: string) => {
      await api().sendSigned('DELETE', path('administrator-requests', id));
      show({ id, withdrawn: true }, () => 'Taken back.');
    });

  users
    .command('roles')
    .description('list the roles of a person or of a service account')
    .argument('<who>', 'e-mail address or id')
    .action(async (who: string) => {
      const server = api();
      const rows = await server.list(path('users', await subjectId(server, who), 'roles'), MANY);
      show(rows, () =>
        table(
          ['ID', 'ROLE', 'WHERE', 'UNTIL', 'GIVEN'],
          rows.map((row) => [textOf(row['id']), textOf(row['role']), textOf(row['project_id']) ?? 'everywhere',
            row['intact'] === true ? when(row['expires_at']) : 'changed!', when(row['granted_at'])]),
        ),
      );
    });

  users
    .command('grant')
    .description('give a role to a person or to a service account')
    .argument('<who>', 'e-mail address or id')
    .argument('<role>', 'its name or id')
    .option('--project <id>', 'in this project only')
    .option('--expires <time>', 'for how long, such as 12h or 30d (default: until it is taken away)', duration)
    .action(async (who: string, role: string, { project, expires }: { project?: string; expires?: number }) => {
      const server = api();
      const given = await server.sendSigned('POST', path('users', await subjectId(server, who), 'roles'), {
        role_id: await roleId(server, role),
        ...(project !== undefined && { project_id: project }),
        ...(expires !== undefined && { expires_at: ahead(expires) }),
      });
      show(given, () => `Given. To take it away:  ${COMMAND} users revoke ${who} ${String(given['id'])}`);
    });

  users
    .command('revoke')
    .description('take a role away')
    .argument('<who>', 'e-mail address or id')
    .argument('<assignment>', 'its id, as  users roles  shows it')
    .action(async (who: string, id: string) => {
      const server = api();
      await server.sendSigned('DELETE', path('users', await subjectId(server, who), 'roles', id));
      show({ id, revoked: true }, () => 'Taken away.');
    });
}

function standing(row: Json): string {
  if (row['intact'] === false) return 'changed!';
  if (row['disabled_at'] !== null) return 'disabled';
  return row['is_administrator'] === true ? 'administrator' : '';
}

function addRoles(roles: Command, { api, show, path }: AccessTools): void {
  roles
    .command('list')
    .description('list roles and what they grant')
    .action(async () => {
      const rows = await api().list('/api/roles', MANY);
      show(rows, () =>
        table(
          ['ID', 'NAME', 'MADE BY', 'PERMISSIONS'],
          rows.map((row) => [textOf(row['id']), textOf(row['name']), row['intact'] === true ? (row['is_system'] === true ? 'KeyGuard' : 'people') : 'changed!', listOf(row['permissions'])]),
        ),
      );
    });

  roles
    .command('create')
    .description('make a role')
    .argument('<name>')
    .argument('<permissions>', 'with commas between them, such as secrets:read,secrets:reveal', separated)
    .option('--description <text>', 'what it is for', '')
    .action(async (name: string, permissions: readonly string[], { description }: { description: string }) => {
      const made = await api().sendSigned('POST', '/api/roles', { name, permissions, description });
      show(made, () => `Made. To give it to somebody:  ${COMMAND} users grant <who> ${name}`);
    });

  roles
    .command('delete')
    .description('delete a role that nobody holds')
    .argument('<role>', 'its name or id')
    .action(async (role: string) => {
      const server = api();
      await server.sendSigned('DELETE', path('roles', await roleId(server, role)));
      show({ role, deleted: true }, () => 'Deleted.');
    });
}

function addProjects(projects: Command, { api, show, path }: AccessTools): void {
  projects
    .command('list')
    .description('list projects, newest first')
    .action(async () => {
      const rows = await api().list('/api/projects', MANY);
      show(rows, () =>
        rows.length === 0
          ? `No projects of yours yet:  ${COMMAND} projects create <name>`
          : table(
              ['ID', 'NAME', 'FOR', 'ARCHIVED', 'CREATED'],
              rows.map((row) => [textOf(row['id']), textOf(row['name']), textOf(row['environment']), when(row['archived_at']), when(row['created_at'])]),
            ),
      );
    });

  projects
    .command('create')
    .description('make a project')
    .argument('<name>')
    .option('--environment <what>', 'production, staging, development or test', 'production')
    .action(async (name: string, { environment }: { environment: string }) => {
      const made = await api().sendSigned('POST', '/api/projects', { name, environment });
      show(made, () => String(made['id']));
    });

  projects
    .command('archive')
    .description('end a project for good; nothing may be in it any more')
    .argument('<id>')
    .option('--yes', 'do not ask')
    .action(async (id: string, { yes }: { yes?: boolean }) => {
      if (yes !== true && !(await confirm('Nothing comes into it any more, and this is not undone. Archive it?'))) throw new CommandError('Nothing was changed.');
      const archived = await api().sendSigned('POST', path('projects', id, 'archive'), {});
      show(archived, () => 'Archived.');
    });
}

function addServiceAccounts(accounts: Command, { api, show, path, duration, wholeNumber }: AccessTools): void {
  const shown = (made: Json): string => `${String(made['token'])}\n\nIt is not shown again. To make another:  ${COMMAND} service-accounts rotate ${String(made['id'])}`;

  accounts
    .command('create')
    .description('make a service account; its token is shown once')
    .argument('<name>')
    .argument('<scopes>', 'the most that it may ever do, with commas between: secrets:read,secrets:reveal', separated)
    .option('--ip <ranges>', 'only from these addresses and CIDR ranges, with commas between them', separated)
    .option('--expires <time>', 'for how long, such as 12h or 30d (default: until it is deleted)', duration)
    .action(async (name: string, scopes: readonly string[], { ip, expires }: { ip?: readonly string[]; expires?: number }) => {
      const made = await api().sendSigned('POST', '/api/service-accounts', {
        name,
        scopes,
        ...(ip !== undefined && { ip_allowlist: ip }),
        ...(expires !== undefined && { expires_at: ahead(expires) }),
      });
      show(made, () => shown(made));
    });

  accounts
    .command('list')
    .description('list service accounts, newest first')
    .option('--limit <count>', 'at most so many', wholeNumber, 50)
    .action(async ({ limit }: { limit: number }) => {
      const rows = await api().list('/api/service-accounts', limit);
      show(rows, () =>
        rows.length === 0
          ? `No service accounts yet:  ${COMMAND} service-accounts create <name> <scopes>`
          : table(
              ['ID', 'NAME', 'TOKEN', 'SCOPES', 'STATE', 'LAST USED'],
              rows.map((row) => [textOf(row['id']), textOf(row['name']), `kgsa_${String(row['token_prefix'])}_…`, listOf(row['scopes']), stateOf(row), when(row['last_used_at'])]),
            ),
      );
    });

  accounts
    .command('rotate')
    .description('make a new token for a service account of yours')
    .argument('<id>')
    .option('--overlap <time>', 'for how long the old one counts as well, such as 15m; at most 7d', duration, 0)
    .action(async (id: string, { overlap }: { overlap: number }) => {
      const made = await api().sendSigned('POST', path('service-accounts', id, 'rotate'), { overlap_s: overlap });
      show(made, () => shown(made));
    });

  for (const [name, description, done] of [['disable', 'refuse its tokens', 'Its tokens are refused.'], ['enable', 'accept its tokens again', 'Its tokens count again.']] as const) {
    accounts
      .command(name)
      .description(description)
      .argument('<id>')
      .action(async (id: string) => {
        const changed = await api().sendSigned('POST', path('service-accounts', id, name), {});
        show(changed, () => done);
      });
  }

  accounts
    .command('delete')
    .description('delete a service account')
    .argument('<id>')
    .action(async (id: string) => {
      await api().sendSigned('DELETE', path('service-accounts', id));
      show({ id, deleted: true }, () => 'Deleted.');
    });
}

function stateOf(row: Json): string {
  if (row['intact'] === false) return 'changed!';
  if (row['disabled_at'] !== null) return 'disabled';
  return row['expires_at'] !== null && Date.parse(String(row['expires_at'])) <= Date.now() ? 'expired' : 'in use';
}
