/** `keyguard secrets`: values come from a pipe or a prompt, never from an argument, and go to the output alone. */
import { readFile } from 'node:fs/promises';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { COMMAND, type Api, type Json } from './api.ts';
import { askSecret, CommandError, confirm, printRaw, readPiped, remark, table, when } from './terminal.ts';

const UUID = /^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$/;
const KINDS = ['password', 'hex', 'base64url', 'uuid', 'rsa', 'ec', 'ed25519'] as const;

export interface SecretCommandsOptions {
  readonly api: () => Api;
  /** Prints for a program with `--json`, for a person else. */
  readonly show: (value: unknown, text: () => string) => void;
  readonly path: (...parts: readonly string[]) => string;
  readonly text: (value: unknown) => string | null;
  readonly wholeNumber: (given: string) => number;
  readonly duration: (given: string) => number;
}

interface GenerateOptions {
  readonly length?: number;
  readonly bytes?: number;
  readonly bits?: number;
  readonly curve?: string;
  readonly template?: string;
  readonly symbols?: boolean;
}

/** What the API calls a generator, of what was typed: a kind, or a template such as `sk-{base62:48}`. */
function generatorOf(kind: string, { length, bytes, bits, curve, symbols }: GenerateOptions = {}): Json {
  if (kind.includes('{')) return { kind: 'template', template: kind };
  if (!(KINDS as readonly string[]).includes(kind)) throw new CommandError(`There is no kind "${kind}": give one of ${KINDS.join(', ')}, or a template such as 'sk-{base62:48}'.`);
  return {
    kind,
    ...(length !== undefined && { length }),
    ...(bytes !== undefined && { bytes }),
    ...(bits !== undefined && { bits }),
    ...(curve !== undefined && { curve }),
    ...(symbols === false && { symbols }),
  };
}

function tagList(given: string, before: readonly string[] = []): readonly string[] {
  if (given.trim() === '') throw new InvalidArgumentError('A tag is not empty.');
  return [...before, given];
}

/** The value from a pipe, byte for byte but for one line break at its end; or from a prompt. */
async function readValue(name: string): Promise<string> {
  if (process.stdin.isTTY) return askSecret(`The value of ${name}`);
  const value = (await readPiped()).replace(/\r?\n$/, '');
  if (value === '') throw new CommandError('The value is missing: pipe it in, or type it at the prompt.');
  return value;
}

/** What else has to do with one secret finds the group and the secret here. */
export interface SecretCommands {
  readonly commands: Command;
  /** By id, or by a name that only one of the caller's has. */
  readonly find: (server: Api, which: string, projectId: string | undefined) => Promise<Json>;
}

export function addSecretCommands(program: Command, { api, show, path, text, wholeNumber, duration }: SecretCommandsOptions): SecretCommands {
  const secrets = program.command('secrets').description('passwords, keys and certificates, sealed and with versions');
  const project = (): Option => new Option('--project <id>', 'of this project (default: your own, in no project)');

  /** Those of this name that the caller may see; in a project where one is given. */
  async function named(server: Api, name: string, projectId: string | undefined): Promise<readonly Json[]> {
    const query = new URLSearchParams({ name, ...(projectId !== undefined && { project_id: projectId }) });
    const found = await server.list(`${path('secrets')}?${query}`, 200);
    return projectId === undefined ? found.filter((one) => one['project_id'] === null) : found;
  }

  /** By id, or by a name that only one has. */
  async function find(server: Api, which: string, projectId: string | undefined): Promise<Json> {
    if (UUID.test(which)) return server.sendSigned('GET', path('secrets', which));
    const [one, another] = await named(server, which, projectId);
    if (one === undefined) throw new CommandError(`There is no secret called ${which}${projectId === undefined ? ' of your own; name its project with --project' : ' in this project'}, or none that you may see.`);
    if (another !== undefined) throw new CommandError(`Several secrets are called ${which}: give the id of one (${COMMAND} secrets list --search ${which}).`);
    return one;
  }

  secrets
    .command('set')
    .description('store a value under a name: a new secret, or a new version of the one that is there')
    .argument('<name>')
    .addOption(project())
    .option('--type <type>', 'what it is, such as password, api_key, certificate, database_url')
    .option('--tag <tag>', 'to find it by; may be given again', tagList)
    .option('--expires <time>', 'when it ends, such as 12h or 90d', duration)
    .option('--reason <text>', 'why there is a new version')
    .option('--generate <kind>', `make the value: ${KINDS.join(', ')}, or a template such as 'sk-{base62:48}'`)
    .addHelpText('after', '\nThe value is asked for, or read from a pipe; never from an argument, which everyone on the machine can read.')
    .action(async (name: string, options: { project?: string; type?: string; tag?: string[]; expires?: number; reason?: string; generate?: string }) => {
      const server = api();
      const found = UUID.test(name) ? [await server.sendSigned('GET', path('secrets', name))] : await named(server, name, options.project);
      if (found.length > 1) throw new CommandError(`Several secrets are called ${name}: give the id of one (${COMMAND} secrets list --search ${name}).`);
      const [there] = found;
      const value = options.generate === undefined ? { value: await readValue(name) } : { generate: generatorOf(options.generate) };
      const expires = options.expires !== undefined && { expires_in_s: options.expires };
      if (there !== undefined) {
        if (options.type !== undefined || options.tag !== undefined) throw new CommandError(`${name} is there already: a new version takes no type and no tags.`);
        const made = await server.sendSigned('POST', path('secrets', String(there['id']), 'versions'), { ...value, ...expires, ...(options.reason !== undefined && { reason: options.reason }) });
        show(made, () => [...generatedLines(made), `Version ${String(made['current_version'])} of ${String(made['name'])} is stored.`].join('\n'));
        return;
      }
      const made = await server.sendSigned('POST', path('secrets'), {
        name, ...value, ...expires,
        ...(options.type !== undefined && { type: options.type }),
        ...(options.tag !== undefined && { tags: options.tag }),
        ...(options.project !== undefined && { project_id: options.project }),
      });
      show(made, () => [...generatedLines(made), `${name} is stored as ${String(made['id'])}.`].join('\n'));
    });

  secrets
    .command('get')
    .description('reveal a value, and print nothing else')
    .argument('<name or id>')
    .addOption(project())
    .option('--version <number>', 'an earlier version', wholeNumber)
    .option('--expired', 'also if it has expired; for its owner')
    .action(async (which: string, options: { project?: string; version?: number; expired?: boolean }) => {
      const server = api();
      const { id } = await find(server, which, options.project);
      const revealed = await server.sendSigned('POST', path('secrets', String(id), 'reveal'), {
        ...(options.version !== undefined && { version: options.version }),
        ...(options.expired === true && { allow_expired: true }),
      });
      const value = String(revealed['value']);
      // Into a file or a program it goes byte for byte.
      if (program.opts<{ json?: boolean }>().json === true || process.stdout.isTTY) show(revealed, () => value);
      else printRaw(value);
    });

  secrets
    .command('list')
    .description('list secrets, newest first, without their values')
    .option('--search <text>', 'only with this in the name or a tag')
    .option('--type <type>', 'only of this type')
    .option('--tag <tag>', 'only with this tag')
    .option('--project <id>', 'only of this project')
    .option('--limit <count>', 'at most so many', wholeNumber, 50)
    .action(async (options: { search?: string; type?: string; tag?: string; project?: string; limit: number }) => {
      const query = new URLSearchParams({
        ...(options.search !== undefined && { q: options.search }),
        ...(options.type !== undefined && { type: options.type }),
        ...(options.tag !== undefined && { tag: options.tag }),
        ...(options.project !== undefined && { project_id: options.project }),
      });
      const rows = await api().list(`${path('secrets')}?${query}`, options.limit);
      show(rows, () =>
        rows.length === 0
          ? `No secrets${query.size === 0 ? ' yet' : ' like that'}:  ${COMMAND} secrets set <name>`
          : table(
              ['ID', 'NAME', 'TYPE', 'VERSION', 'PROJECT', 'TAGS', 'EXPIRES', 'CHANGED'],
              rows.map((row) => [text(row['id']), row['intact'] === false ? `${String(row['name'])} (changed!)` : text(row['name']), text(row['type']), text(row['current_version']),
                text(row['project_id']), (row['tags'] as string[]).join(', ') || null, when(row['expires_at']), when(row['updated_at'])]),
            ),
      );
    });

  secrets
    .command('rm')
    .description('destroy a secret with all its versions, or one version, for ever')
    .argument('<name or id>')
    .addOption(project())
    .option('--version <number>', 'only this version, which must not be the current one', wholeNumber)
    .option('--yes', 'do not ask')
    .action(async (which: string, options: { project?: string; version?: number; yes?: boolean }) => {
      const server = api();
      const { id, name } = await find(server, which, options.project);
      const what = options.version === undefined ? `${String(name)} with all its versions` : `version ${options.version} of ${String(name)}`;
      if (options.yes !== true && !(await confirm(`Destroy ${what} for ever?`))) throw new CommandError('Nothing was destroyed.');
      await server.sendSigned('DELETE', options.version === undefined ? path('secrets', String(id)) : path('secrets', String(id), 'versions', String(options.version)));
      show({ id, destroyed: true }, () => `Destroyed: ${what}.`);
    });

  secrets
    .command('import')
    .description('store the variables of a .env file: all of them, or none')
    .argument('[file]', 'the file; without one, a pipe')
    .addOption(project())
    .option('--tag <tag>', 'for what is new; may be given again', tagList)
    .option('--dry-run', 'say what would be done, and do nothing')
    .action(async (file: string | undefined, options: { project?: string; tag?: string[]; dryRun?: boolean }) => {
      const report = await api().sendSigned('POST', path('secrets', 'import'), {
        text: await readFileOrPipe(file),
        ...(options.project !== undefined && { project_id: options.project }),
        ...(options.tag !== undefined && { tags: options.tag }),
        dry_run: options.dryRun === true,
      });
      const variables = report['variables'] as Json[];
      show(report, () =>
        [
          table(['LINE', 'NAME', 'OUTCOME', 'PROBLEM'], variables.map((row) => [text(row['line']), text(row['name']), text(row['outcome']), text(row['problem'])])),
          '',
          `${report['applied'] === true ? 'Done' : 'Nothing was written'}: ${['created', 'updated', 'unchanged', 'invalid'].map((outcome) => `${String(report[outcome])} ${outcome}`).join(', ')}.`,
        ].join('\n'),
      );
      if (Number(report['invalid']) > 0) process.exitCode = 1;
    });

  secrets
    .command('export')
    .description('reveal all secrets of a project, or your own, as a .env file')
    .addOption(project())
    .option('--environment <name>', 'of all projects of this environment')
    .addOption(new Option('--format <format>', 'as a .env file, or as JSON').choices(['env', 'json']).default('env'))
    .action(async (options: { project?: string; environment?: string; format: string }) => {
      const answer = await api().fetchSigned('POST', path('secrets', 'export'), {
        ...(options.project !== undefined && { project_id: options.project }),
        ...(options.environment !== undefined && { environment: options.environment }),
        format: options.format,
      });
      printRaw(answer.text);
      if (answer.text === '') remark('There is nothing to export.');
    });

  secrets
    .command('generate')
    .description('make a value, and store it nowhere')
    .argument('[kind]', `${KINDS.join(', ')}, or a template such as 'sk-{base62:48}'`, 'password')
    .option('--length <count>', 'of a password', wholeNumber)
    .option('--no-symbols', 'a password of letters and digits alone')
    .option('--bytes <count>', 'of hex and base64url', wholeNumber)
    .option('--bits <count>', 'of an RSA key', wholeNumber)
    .option('--curve <name>', 'of an EC key: P-256, P-384 or P-521')
    .action(async (kind: string, options: GenerateOptions) => {
      const made = await api().sendSigned('POST', path('secrets', 'generate'), generatorOf(kind, options));
      show(made, () => String(made['value']).trimEnd());
      remark(`${String(made['entropy_bits'])} bits`);
    });

  function generatedLines(made: Json): readonly string[] {
    if (made['value'] === undefined) return [];
    return [String(made['value']).trimEnd(), ...(made['public_key'] === undefined ? [] : ['', String(made['public_key']).trimEnd()]), ''];
  }

  return { commands: secrets, find };
}

async function readFileOrPipe(file: string | undefined): Promise<string> {
  if (file === undefined) {
    if (process.stdin.isTTY) throw new CommandError('Name a file, or pipe one in.');
    return readPiped();
  }
  try {
    return await readFile(file, 'utf8');
  } catch (cause) {
    throw new CommandError(`${file} cannot be read.`, { cause });
  }
}
