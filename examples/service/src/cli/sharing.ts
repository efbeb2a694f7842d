/** `keyguard secrets share` and what belongs to it: giving secrets to others, and links to whoever has no account. */
import { Option } from 'commander';
import { COMMAND, type Api, type Json } from './api.ts';
import type { SecretCommands } from './secrets.ts';
import { askSecret, table, when } from './terminal.ts';

export interface SharingTools {
  readonly api: () => Api;
  readonly show: (value: unknown, text: () => string) => void;
  readonly path: (...parts: readonly string[]) => string;
  /** `12h` in seconds. */
  readonly duration: (given: string) => number;
  readonly wholeNumber: (given: string) => number;
}

const textOf = (value: unknown): string | null => (typeof value === 'string' || typeof value === 'number' ? String(value) : null);

function granteeText({ grantee }: Json): string {
  const { type, label, id } = grantee as Json;
  if (type === 'link') return 'whoever has the link';
  const name = String(label ?? id);
  return type === 'user' ? name : `${String(type).replace('_', ' ')} ${name}`;
}

function stateText(row: Json): string {
  if (row['intact'] === false) return 'changed!';
  if (row['revoked_at'] !== null) return 'taken back';
  if (row['expires_at'] !== null && Date.parse(String(row['expires_at'])) <= Date.now()) return 'expired';
  if (row['max_views'] === null) return String(row['permission']);
  return `opened ${String(row['views'])} of ${String(row['max_views'])}`;
}

/** Adds to the commands of `secrets`. */
export function addSharing({ commands: secrets, find }: SecretCommands, { api, show, path, duration, wholeNumber }: SharingTools): void {
  const idOf = async (server: Api, which: string): Promise<string> => String((await find(server, which, undefined))['id']);

  secrets
    .command('share')
    .description('let a person, a role or a service account use a secret')
    .argument('<secret>', 'its name, or its id')
    .argument('<grantee>', 'the e-mail address or the id of a person; an id with --role or --service-account')
    .option('--write', 'let them store new values as well')
    .addOption(new Option('--role', 'the grantee is a role: whoever holds it').conflicts('serviceAccount'))
    .option('--service-account', 'the grantee is a service account')
    .addOption(new Option('--expires <time>', 'for how long, such as 12h or 30d (default: until it is taken back)').argParser(duration))
    .action(async (which: string, who: string, options: { write?: boolean; role?: boolean; serviceAccount?: boolean; expires?: number }) => {
      const type = options.role === true ? 'role' : options.serviceAccount === true ? 'service_account' : 'user';
      const server = api();
      const id = await idOf(server, which);
      const shared = await server.sendSigned('POST', path('secrets', id, 'shares'), {
        grantee: { type, ...(who.includes('@') ? { email: who } : { id: who }) },
        permission: options.write === true ? 'write' : 'read',
        ...(options.expires !== undefined && { expires_at: new Date(Date.now() + options.expires * 1000).toISOString() }),
      });
      show(shared, () => `Shared with ${granteeText(shared)}, to ${String(shared['permission'])}. To take it back:  ${COMMAND} secrets unshare ${id} ${String(shared['id'])}`);
    });

  secrets
    .command('unshare')
    .description('take back a share or a link; it ends at once')
    .argument('<secret>', 'its name, or its id')
    .argument('<share>', 'the id of the share or link')
    .action(async (which: string, shareId: string) => {
      const server = api();
      const id = await idOf(server, which);
      await server.sendSigned('DELETE', path('secrets', id, 'shares', shareId));
      show({ id: shareId, revoked: true }, () => 'Taken back. Whoever has seen the value still knows it: store a new one if they should not.');
    });

  secrets
    .command('shares')
    .description('who a secret is shared with, newest first')
    .argument('<secret>', 'its name, or its id')
    .option('--limit <count>', 'at most so many', wholeNumber, 50)
    .action(async (which: string, { limit }: { limit: number }) => {
      const server = api();
      const id = await idOf(server, which);
      const rows = await server.list(path('secrets', id, 'shares'), limit);
      show(rows, () =>
        rows.length === 0
          ? `Shared with nobody:  ${COMMAND} secrets share ${id} <e-mail>`
          : table(['ID', 'WITH', 'STATE', 'EXPIRES', 'MADE'], rows.map((row) => [textOf(row['id']), granteeText(row), stateText(row), when(row['expires_at']), when(row['created_at'])])),
      );
    });

  secrets
    .command('shared')
    .description('what others have shared with you, newest first')
    .option('--limit <count>', 'at most so many', wholeNumber, 50)
    .action(async ({ limit }: { limit: number }) => {
      const rows = await api().list(path('shares'), limit);
      show(rows, () =>
        rows.length === 0
          ? 'Nobody shares anything with you.'
          : table(
              ['SECRET', 'NAME', 'TYPE', 'OWNER', 'TO', 'EXPIRES'],
              rows.map((row) => {
                const [secret, owner] = [row['secret'] as Json, row['owner'] as Json];
                return [textOf(secret['id']), textOf(secret['name']), textOf(secret['type']), textOf(owner['label'] ?? owner['id']), textOf(row['permission']), when(row['expires_at'])];
              }),
            ),
      );
    });

  secrets
    .command('link')
    .description('make a link with which somebody without an account sees a secret; it is shown once')
    .argument('<secret>', 'its name, or its id')
    .option('--views <count>', 'how often it can be opened', wholeNumber, 1)
    .addOption(new Option('--expires <time>', 'for how long it is good, such as 15m, 12h or 7d').argParser(duration).default(86_400, '1d'))
    .option('--passphrase', 'ask for a passphrase, which whoever opens it must give')
    .action(async (which: string, options: { views: number; expires: number; passphrase?: boolean }) => {
      const server = api();
      const id = await idOf(server, which);
      const passphrase = options.passphrase === true ? await askSecret('Passphrase, at least 8 characters') : undefined;
      const made = await server.sendSigned('POST', path('secrets', id, 'links'), {
        max_views: options.views,
        expires_in_s: options.expires,
        ...(passphrase !== undefined && { passphrase }),
      });
      show(made, () => {
        const views = made['max_views'] === 1 ? 'Opens once' : `Opens ${String(made['max_views'])} times`;
        const asks = passphrase === undefined ? '' : ' It asks for the passphrase: tell that on another way.';
        return `${String(made['url'])}\n\n${views}, until ${when(made['expires_at'])}. It is not shown again.${asks} To take it back:  ${COMMAND} secrets unshare ${id} ${String(made['id'])}`;
      });
    });
}
