/**
 * What only the built packages can show: they build, publish cleanly, carry right types, import on every Node at hand, and an
 * application bundles no more than it uses. Run by `pnpm test:dist`; prints one line per check and fails if one does.
 */
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';

const root = new URL('..', import.meta.url).pathname;
const packages = readdirSync(join(root, 'packages')).filter((name) => existsSync(join(root, 'packages', name, 'tsup.config.ts')));
let passed = 0;
const failures: string[] = [];

async function check(name: string, run: () => void | string | Promise<string | void>): Promise<void> {
  try {
    const note = await run();
    passed += 1;
    console.log(`ok    ${name}${note ? `: ${note}` : ''}`);
  } catch (error) {
    failures.push(name);
    const { stdout = '', stderr = '', message } = error as Error & { stdout?: string; stderr?: string };
    console.log(`FAIL  ${name}\n${stdout}${stderr || message}`);
  }
}

function run(command: string, args: string[], cwd = root): string {
  return execFileSync(command, args, { cwd, encoding: 'utf8', stdio: 'pipe' });
}

/** A tool of this workspace, beside others that run at the same time. */
async function runBeside(tool: string, args: string[], cwd = root): Promise<string> {
  return (await promisify(execFile)(join(root, 'node_modules/.bin', tool), args, { cwd, encoding: 'utf8', maxBuffer: 2 ** 26 })).stdout;
}

interface Manifest {
  readonly name: string;
  readonly publishConfig: { readonly exports: Record<string, { readonly types: string; readonly default: string }> };
}

const manifest = (name: string): Manifest => JSON.parse(readFileSync(join(root, 'packages', name, 'package.json'), 'utf8')) as Manifest;

// At the same time: none reads what another one builds.
await Promise.all(packages.map((name) => check(`${name}: builds`, async () => void (await runBeside('tsup', [], join(root, 'packages', name))))));
for (const name of packages) {
  await check(`${name}: every exported file exists`, () => {
    const files = Object.values(manifest(name).publishConfig.exports).flatMap(({ types, default: code }) => [types, code]);
    const missing = files.filter((file) => !existsSync(join(root, 'packages', name, file)));
    if (missing.length > 0) throw new Error(missing.join(', '));
    return `${files.length} files`;
  });
}
const published = Promise.all(
  packages.flatMap((name) => {
    const folder = join(root, 'packages', name);
    return [
      check(`${name}: publint`, async () => void (await runBeside('publint', ['--strict', folder]))),
      check(`${name}: are the types wrong`, async () => {
        // Only what is published: a package may have subpaths for this workspace alone.
        await runBeside('attw', ['--pack', folder, '--profile', 'esm-only', '--entrypoints', ...Object.keys(manifest(name).publishConfig.exports)]);
      }),
    ];
  }),
);

// Plain Node, no TypeScript, no condition: what an application gets.
const nodes = new Map<string, string>();
for (const path of ['node', '/usr/local/bin/node', '/usr/bin/node', ...(process.env['KEYGUARD_NODES'] ?? '').split(':').filter(Boolean)]) {
  try {
    nodes.set(run(path, ['--version']).trim(), path);
  } catch {
    // Not at hand.
  }
}
for (const [version, path] of nodes) {
  await check(`imports on Node ${version}`, () => {
    const specifiers = ['core', 'server-verifier', 'adapters-express', 'storage-node'].flatMap((name) =>
      Object.keys(manifest(name).publishConfig.exports).map((subpath) => manifest(name).name + subpath.slice(1)),
    );
    const code = `await Promise.all(${JSON.stringify(specifiers)}.map((specifier) => import(specifier)))`;
    run(path, ['--input-type=module', '--eval', code], join(root, 'examples/service'));
    return `${specifiers.length} entries`;
  });
}

// As outside this workspace: neither its configuration nor its condition. That package runs inside Vitest, and nowhere else.
const judged = check('the suites run over an adapter, as built', async () => {
  const adapter = join(root, 'examples/adapter-sqlite');
  const output = await runBeside('vitest', ['run', '--root', adapter, '--reporter=default', '--reporter=@keyguard/conformance/reporter'], adapter);
  const row = output.split('\n').find((line) => line.includes('| sqliteReplayStore |'));
  if (row === undefined || row.includes('—') || row.includes('✗')) throw new Error(output);
  return row;
});

interface Bundle {
  readonly bytes: number;
  readonly inputs: readonly string[];
}

async function bundle(code: string, from = 'packages/storage-indexeddb'): Promise<Bundle> {
  const result = await build({
    stdin: { contents: code, resolveDir: join(root, from), loader: 'js' },
    bundle: true,
    minify: true,
    format: 'esm',
    platform: 'browser',
    write: false,
    metafile: true,
    logLevel: 'silent',
  });
  const [output] = Object.values(result.metafile.outputs);
  const inputs = Object.entries(output!.inputs)
    .filter(([, { bytesInOutput }]) => bytesInOutput > 0)
    .map(([path]) => path);
  return { bytes: gzipSync(result.outputFiles[0]!.contents, { level: 9 }).length, inputs };
}

/** What of core's rooms came along, read from marks that each room's code leaves in a bundle. */
async function sources(code: string): Promise<string> {
  const result = await build({
    stdin: { contents: code, resolveDir: join(root, 'packages/storage-indexeddb'), loader: 'js' },
    bundle: true,
    // Without comments: one may well speak of another room.
    minifyWhitespace: true,
    format: 'esm',
    platform: 'browser',
    write: false,
    logLevel: 'silent',
  });
  return result.outputFiles[0]!.text;
}

const SIGNER = `export { createSigner } from '@keyguard/core/sign';`;
const CLIENT = `export { KeyGuardClient } from '@keyguard/core/client';`;
const STORE = `export { KeyGuardClient } from '@keyguard/core/client'; export { indexedDbKeyStore } from '@keyguard/storage-indexeddb';`;
const sizes = { signer: 0, client: 0, store: 0 };

await check('the signer alone is at most 4 kB', async () => {
  sizes.signer = (await bundle(SIGNER)).bytes;
  if (sizes.signer > 4096) throw new Error(`${sizes.signer} bytes`);
  return `${sizes.signer} bytes, minified and gzipped`;
});
await check('the whole client is at most 8 kB', async () => {
  sizes.client = (await bundle(CLIENT)).bytes;
  if (sizes.client > 8192) throw new Error(`${sizes.client} bytes`);
  return `${sizes.client} bytes`;
});
await check('the IndexedDB store adds at most 2 kB', async () => {
  sizes.store = (await bundle(STORE)).bytes;
  if (sizes.store - sizes.client > 2048) throw new Error(`${sizes.store - sizes.client} bytes`);
  return `${sizes.store - sizes.client} bytes`;
});
await check('importing the signer brings nothing of the other rooms', async () => {
  for (const specifier of ['@keyguard/core/sign', '@keyguard/core']) {
    const text = await sources(`export { createSigner } from '${specifier}';`);
    for (const mark of ['AES-GCM', 'PBKDF2', 'vault_open_failed', 'kg-audit-v1', 'timestamp_out_of_window', 'readSignedHead', 'replay_store', 'kg-fingerprint-v1', 'retention_ended', 'lowS']) {
      if (text.includes(mark)) throw new Error(`${specifier} brings "${mark}"`);
    }
  }
});

await check('the API documentation builds without a warning, a page for each export', async () => {
  // Warnings are errors there.
  await runBeside('typedoc', []);
  let pages = 0;
  for (const name of packages) {
    const { name: specifier, publishConfig } = manifest(name);
    const subpaths = Object.keys(publishConfig.exports);
    for (const subpath of subpaths) {
      const page = subpaths.length === 1 ? '' : `.${subpath.slice(2)}`;
      const file = join(root, 'docs-out/modules', `${specifier.replace('@', '_').replace('/', '_')}${page}.html`);
      if (!existsSync(file)) throw new Error(`${specifier}${subpath.slice(1)} has no page: its export lacks the condition "typedoc".`);
      pages += 1;
    }
  }
  return `${pages} pages`;
});

await Promise.all([published, judged]);
console.log(`\ndist: ${passed} passed, ${failures.length} failed`);
process.exitCode = failures.length === 0 ? 0 : 1;
