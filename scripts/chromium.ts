/**
 * The real browser of the tests: `CHROMIUM_PATH`, or the build inside the npm package `@sparticuz/chromium`, unpacked once.
 * It changes nothing in the environment of this process: what the browser needs is handed to the browser alone.
 */
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** What a test needs to launch the browser with Playwright's `chromium.launch(…)`. */
export interface Chromium {
  readonly executablePath: string;
  readonly args: string[];
  readonly env: Record<string, string>;
}

// Containers and CI run as root, where Chromium's own sandbox does not start.
const ARGS = ['--no-sandbox'];
const CACHE = fileURLToPath(new URL('../node_modules/.cache/', import.meta.url));

/** Finds the browser, unpacking it first where that is needed; processes that do so at once do not disturb each other. */
export async function findChromium(): Promise<Chromium> {
  const env: Record<string, string> = {};
  for (const [name, value] of Object.entries(process.env)) if (value !== undefined) env[name] = value;
  if (process.env.CHROMIUM_PATH) return { executablePath: process.env.CHROMIUM_PATH, args: ARGS, env };
  const home = join(CACHE, 'chromium');
  if (!existsSync(home)) await unpack(home);
  env.LD_LIBRARY_PATH = [join(home, 'al2023', 'lib'), process.env.LD_LIBRARY_PATH].filter(Boolean).join(':');
  env.FONTCONFIG_PATH = join(home, 'fonts');
  env.FONTCONFIG_FILE = await configureFonts(home);
  return { executablePath: join(home, 'chromium'), args: ARGS, env };
}

/** The package's own configuration names folders that are not here, and a browser without any font ends at the first text. */
async function configureFonts(home: string): Promise<string> {
  const file = join(home, 'keyguard-fonts.conf');
  if (!existsSync(file)) {
    const dirs = [join(home, 'fonts', 'fonts'), '/usr/share/fonts'].map((dir) => `<dir>${dir}</dir>`);
    const unfinished = `${file}.${process.pid}`;
    await writeFile(unfinished, `<?xml version="1.0"?><fontconfig>${dirs.join('')}<cachedir>${join(home, 'fonts-cache')}</cachedir></fontconfig>`);
    await rename(unfinished, file);
  }
  return file;
}

async function unpack(home: string): Promise<void> {
  await mkdir(CACHE, { recursive: true });
  const unfinished = await mkdtemp(join(CACHE, 'chromium-'));
  const before = { ...process.env };
  try {
    process.env.TMPDIR = unfinished;
    // Makes the package unpack the shared libraries that a bare machine lacks.
    process.env.AWS_EXECUTION_ENV = 'AWS_Lambda_nodejs22.x';
    const { default: chromium } = await import('@sparticuz/chromium');
    await chromium.executablePath();
    await rename(unfinished, home);
  } catch (error) {
    // Another process has finished first.
    if (!existsSync(home)) throw error;
  } finally {
    for (const name of Object.keys(process.env)) if (!(name in before)) delete process.env[name];
    Object.assign(process.env, before);
    await rm(unfinished, { recursive: true, force: true });
  }
}
