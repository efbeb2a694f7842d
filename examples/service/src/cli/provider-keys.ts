/** `keyguard keys`, as far as it is about provider keys. Values come from a pipe or a prompt, never from an argument. */
import type { Command } from 'commander';
import { COMMAND, type Api, type Json } from './api.ts';
import { askSecret, CommandError, confirm, table, when } from './terminal.ts';

export interface ProviderKeyTools {
  readonly api: () => Api;
  readonly show: (value: unknown, text: () => string) => void;
  readonly path: (...parts: readonly string[]) => string;
  readonly text: (value: unknown) => string | null;
  /** `12h` in seconds. */
  readonly duration: (given: string) => number;
  readonly wholeNumber: (given: string) => number;
}

export interface ReplaceOptions {
  readonly overlap?: number;
  readonly reason?: string;
  readonly expires?: number;
  readonly verify?: boolean;
}

const ahead = (seconds: number): string => new Date(Date.now() + seconds * 1000).toISOString();

function replacing({ overlap, reason, expires, verify = true }: ReplaceOptions): Json {
  return { verify, ...(overlap !== undefined && { overlap_s: overlap }), ...(reason !== undefined && { reason }), ...(expires !== undefined && { expires_at: ahead(expires) }) };
}

/** What is said of a key that has a new value. */
function replaced(key: Json): string {
  return `Version ${String(key['current_version'])} of ${String(key['name'])}, which ends in ${String(key['last4'])}, is in use. Take the one before it back at ${String(key['provider'])} once nothing needs it:  ${COMMAND} keys versions ${String(key['id'])}`;
}

/** The options of whatever gives a key a value. */
export function withReplaceOptions(command: Command, duration: (given: string) => number): Command {
  return command
    .option('--overlap <time>', 'of a provider key: for how long the value before it is expected to be good, such as 1h', duration)
    .option('--reason <text>', 'likewise: why there is a new version')
    .option('--expires <time>', 'likewise: from when on it is not used any more, such as 90d', duration)
    .option('--no-verify', 'likewise: do not ask the provider first');
}

/** Gives the key of that id a new value, which is asked for, or read from a pipe. */
export async function rotateProviderKey({ api, show, path }: Pick<ProviderKeyTools, 'api' | 'show' | 'path'>, id: string, options: ReplaceOptions): Promise<void> {
  const server = api();
  // Before the secret is asked for, so that nobody pastes one for nothing.
  const { provider, name } = await server.sendSigned('GET', path('api-keys', id));
  const value = await askSecret(`The new ${String(provider)} key for ${String(name)}`);
  const key = await server.sendSigned('POST', path('api-keys', id, 'rotate'), { value, ...replacing(options) });
  show(key, () => replaced(key));
}

function stateOf(key: Json): string {
  if (key['intact'] === false) return 'changed!';
  if (key['is_active'] !== true) return 'revoked';
  if (typeof key['expires_at'] === 'string' && Date.parse(key['expires_at']) <= Date.now()) return 'expired';
  return key['is_default'] === true ? 'in use' : 'kept';
}

export function addProviderKeys(keys: Command, tools: ProviderKeyTools): void {
  const { api, show, path, text, duration, wholeNumber } = tools;

  keys
    .command('add')
    .description('store a provider key and use it from now on; its value is asked for, or read from a pipe')
    .argument('<provider>', 'for instance openai')
    .option('--name <text>', 'what to call it')
    .option('--project <id>', 'whose devices use it (default: the project that every deployment begins with)')
    .option('--base-url <url>', 'where it is sent, among the origins that the operator allows')
    .option('--deployment <name>', 'of providers that have deployments: the only one that is called with it')
    .option('--api-version <version>', 'likewise: for calls that name none')
    .option('--expires <time>', 'from when on it is not used any more, such as 90d', duration)
    .option('--rotate-every <days>', 'after how many days its rotation is due', wholeNumber)
    .option('--no-default', 'keep it beside the one that is used now')
    .option('--verify', 'ask the provider first, and store nothing that it refuses')
    .action(
      async (
        provider: string,
        options: { name?: string; project?: string; baseUrl?: string; deployment?: string; apiVersion?: string; expires?: number; rotateEvery?: number; default: boolean; verify?: boolean },
      ) => {
        const server = api();
        // Before the secret is asked for, so that nobody pastes one for nothing.
        await server.sendSigned('GET', `${path('api-keys')}?limit=1`);
        const value = await askSecret(`The ${provider} key`);
        const stored = await server.sendSigned('POST', path('api-keys'), {
          provider, value, is_default: options.default, verify: options.verify === true,
          ...(options.name !== undefined && { name: options.name }),
          ...(options.project !== undefined && { project_id: options.project }),
          ...(options.baseUrl !== undefined && { base_url: options.baseUrl }),
          ...(options.deployment !== undefined && { deployment: options.deployment }),
          ...(options.apiVersion !== undefined && { api_version: options.apiVersion }),
          ...(options.expires !== undefined && { expires_at: ahead(options.expires) }),
          ...(options.rotateEvery !== undefined && { rotation_policy: { every_days: options.rotateEvery } }),
        });
        show(stored, () =>
          stored['is_default'] === true
            ? `Stored. Devices use the ${provider} key that ends in ${String(stored['last4'])} from now on.`
            : `Stored as ${String(stored['id'])}, and not used yet:  ${COMMAND} keys default ${String(stored['id'])}`,
        );
      },
    );

  keys
    .command('list')
    .description('list provider keys, newest first')
    .option('--rotation-due', 'only those whose rotation is due')
    .option('--project <id>', 'only of this project')
    .option('--limit <count>', 'at most so many', wholeNumber, 50)
    .action(async ({ rotationDue, project, limit }: { rotationDue?: boolean; project?: string; limit: number }) => {
      const query = new URLSearchParams({ ...(rotationDue === true && { rotation_due: 'true' }), ...(project !== undefined && { project_id: project }) });
      const rows = await api().list(query.size === 0 ? path('api-keys') : `${path('api-keys')}?${query}`, limit);
      show(rows, () =>
        rows.length === 0
          ? query.size === 0 ? `No provider keys yet:  ${COMMAND} keys add openai` : 'No provider keys like that.'
          : table(
              ['ID', 'PROVIDER', 'NAME', 'ENDS IN', 'STATE', 'VERSION', 'ROTATE', 'EXPIRES', 'LAST USED', 'STORED'],
              rows.map((row) => [text(row['id']), text(row['provider']), text(row['name']), text(row['last4']), stateOf(row), text(row['current_version']),
                row['rotation_due'] === true ? 'due' : when(row['next_rotation_at']), when(row['expires_at']), when(row['last_used_at']), when(row['created_at'])]),
            ),
      );
    });

  keys
    .command('versions')
    .description('list the versions of a provider key, newest first')
    .argument('<id>')
    .option('--limit <count>', 'at most so many', wholeNumber, 50)
    .action(async (id: string, { limit }: { limit: number }) => {
      const rows = await api().list(path('api-keys', id, 'versions'), limit);
      show(rows, () =>
        table(
          ['VERSION', 'ENDS IN', 'STATE', 'STORED', 'TRIED', 'GOOD UNTIL', 'REASON'],
          rows.map((row) => [text(row['version']), text(row['last4']), text(row['state']), when(row['created_at']), when(row['verified_at']), when(row['overlap_until']), text(row['reason'])]),
        ),
      );
    });

  withReplaceOptions(keys.command('restore').description('put the value of an earlier version of a provider key into use again'), duration)
    .argument('<id>')
    .argument('<version>', 'its number', wholeNumber)
    .action(async (id: string, version: number, options: ReplaceOptions) => {
      const key = await api().sendSigned('POST', path('api-keys', id, 'versions', String(version), 'restore'), replacing(options));
      show(key, () => replaced(key));
    });

  keys
    .command('test')
    .description('ask the provider whether it takes a key; exit code 1 where it does not')
    .argument('<id>')
    .action(async (id: string) => {
      const outcome = await api().sendSigned('POST', path('api-keys', id, 'test'));
      const status = outcome['status'] === null ? '' : ` (${String(outcome['status'])})`;
      show(outcome, () => (outcome['ok'] === true ? `The provider takes it, and answered in ${String(outcome['latency_ms'])} ms.` : `The provider does not take it: ${String(outcome['code'])}${status}.`));
      if (outcome['ok'] !== true) process.exitCode = 1;
    });

  keys
    .command('default')
    .description('let the devices of its project use this provider key from now on')
    .argument('<id>')
    .action(async (id: string) => {
      const key = await api().sendSigned('POST', path('api-keys', id, 'default'));
      show(key, () => `Devices use the ${String(key['provider'])} key that ends in ${String(key['last4'])} from now on.`);
    });

  keys
    .command('revoke')
    .description('never use a provider key again, and destroy its values')
    .argument('<id>')
    .option('--yes', 'do not ask')
    .action(async (id: string, { yes = false }: { yes?: boolean }) => {
      const server = api();
      if (!yes && !(await confirm(`Destroy all values of ${id} for ever?`))) throw new CommandError('Not revoked.');
      const revoked = await server.sendSigned('POST', path('api-keys', id, 'revoke'), {});
      show(revoked, () => `Revoked. Take it back at ${String(revoked['provider'])} as well: whoever has a copy can still use it there.`);
    });
}
