/** The page in a real Chromium, from a file, with the network off. */
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { toBase64, utf8 } from '@keyguard/core/bytes';
import { chromium, type Browser, type LaunchOptions, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, inject, test } from 'vitest';
import { buildPage } from '../src/page/build.ts';
import { exportOf, headOf, macSecrets, newLog, publicKey, type Database } from './log.ts';

const { database, notes } = await newLog();
const macLines = [...macSecrets].map(([id, key]) => `${id}=${toBase64(key)}`).join('\n');
// Where the pictures go, for who wants to look at them.
const pictures = process.env['KEYGUARD_SCREENSHOTS'];

/** The browser's own fonts are looked for where it was not unpacked to, and without one it draws no text at all. */
async function withFonts(into: string): Promise<LaunchOptions> {
  const { env, ...others } = inject('chromium');
  const dirs = [join(env['FONTCONFIG_PATH'] ?? into, 'fonts'), '/usr/share/fonts'].map((dir) => `<dir>${dir}</dir>`);
  await writeFile(join(into, 'fonts.conf'), `<?xml version="1.0"?><fontconfig>${dirs.join('')}<cachedir>${into}</cachedir></fontconfig>`);
  return { ...others, env: { ...env, FONTCONFIG_FILE: join(into, 'fonts.conf') } };
}

describe('the page', { timeout: 60_000 }, () => {
  let folder: string;
  let browser: Browser;
  let page: Page;
  const requests: string[] = [];
  const complaints: string[] = [];

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), 'keyguard-page-'));
    const path = join(folder, 'audit-verifier.html');
    await writeFile(path, await buildPage());
    browser = await chromium.launch(await withFonts(folder));
    const context = await browser.newContext({ offline: true, viewport: { width: 900, height: 1100 } });
    page = await context.newPage();
    page.on('request', (request) => requests.push(request.url()));
    page.on('pageerror', (error) => complaints.push(String(error)));
    page.on('console', (message) => complaints.push(message.text()));
    await page.goto(pathToFileURL(path).href);
  }, 120_000);
  afterAll(async () => {
    await browser?.close();
    await rm(folder, { recursive: true });
  });

  interface Given {
    readonly lines: readonly string[];
    readonly kept?: Iterable<readonly [number, string]>;
    readonly macKeys?: string;
    readonly key?: string;
  }
  async function verify({ lines, kept = notes, macKeys = '', key = publicKey }: Given): Promise<string> {
    await page.locator('#export').setInputFiles({ name: 'export.jsonl', mimeType: 'application/json', buffer: Buffer.from(`${lines.join('\n')}\n`) });
    await page.locator('#checkpoints').setInputFiles([...kept].map(([size, note]) => ({ name: `${size}.checkpoint`, mimeType: 'text/plain', buffer: Buffer.from(note) })));
    await page.locator('#key').fill(key);
    await page.locator('#mac-keys').fill(macKeys);
    await page.locator('#verify').click();
    await page.locator('#result .verdict').waitFor();
    await page.locator('#verify:enabled').waitFor();
    return page.locator('#result').innerText();
  }
  async function picture(name: string): Promise<void> {
    if (pictures !== undefined) await page.screenshot({ path: join(pictures, `${name}.png`), fullPage: true });
  }
  const changed = async (change: (db: Database) => void): Promise<string[]> => {
    const db = structuredClone(database);
    change(db);
    return exportOf(db);
  };
  const edit = (db: Database): void => void (db.records[33] = { ...db.records[33]!, bytes: utf8(Buffer.from(db.records[33]!.bytes).toString().replace('success', 'refused')) });

  test('says that an intact log is intact', async () => {
    const text = await verify({ lines: await exportOf(database) });
    expect(text).toMatch(/^The log is intact\./);
    expect(text).toContain('the first 60 are proven by a checkpoint');
    expect(text).toContain('MACs were not checked');
    await picture('intact');
    expect(await verify({ lines: await exportOf(database), macKeys: macLines })).toContain('All MACs are right.');
  });

  test('names an attack, and the entry once it has the MAC keys', async () => {
    const lines = await changed(edit);
    const range = await verify({ lines });
    expect(range).toMatch(/^This is not the log that was signed for\./);
    expect(range).toContain('An entry was changed');
    expect(range).toContain('Where: somewhere in entries 30 to 39');
    expect(await verify({ lines, macKeys: macLines })).toContain('Where: entry 33');
    await picture('edit');
  });

  test('names a restored database, and several things at once', async () => {
    const restored = await changed((db) => {
      db.records.splice(35);
      db.head = headOf(db.records);
      db.checkpoint = null;
    });
    expect(await verify({ lines: restored })).toContain('restored-old-database');
    const many = await changed((db) => {
      edit(db);
      db.records.splice(12, 2);
      db.checkpoint = `${db.checkpoint!.slice(0, -8)}AAAAA==\n`;
    });
    const text = await verify({ lines: many, macKeys: macLines });
    for (const said of ['edit', 'Where: entry 33', 'drop-middle', 'Where: entries 12 to 13', 'swapped-checkpoint']) expect(text).toContain(said);
    await picture('several');
  });

  test('verifies nothing of what it cannot read, and shows text as text', async () => {
    expect(await verify({ lines: (await exportOf(database)).slice(0, -1) })).toMatch(/^Nothing was verified\.\s+The export ends after line 62/);
    expect(await verify({ lines: await exportOf(database), key: 'x' })).toMatch(/^Nothing was verified\.\s+A verifier key is/);
    expect(await verify({ lines: await exportOf(database), macKeys: 'x' })).toMatch(/^Nothing was verified\.\s+MAC keys are given/);
    const markup = '<img src=x onerror=alert(1)>';
    expect(await verify({ lines: await exportOf(database, markup) })).toContain(`Log: ${markup}`);
    expect(await page.locator('#result img').count()).toBe(0);
  });

  test('asked the network for nothing, and could not have', async () => {
    expect(requests).toEqual([expect.stringMatching(/^file:.*audit-verifier\.html$/)]);
    expect(complaints).toEqual([]);
    const refused = await page.evaluate(async () => {
      const violation = new Promise<string>((resolve) => {
        document.addEventListener('securitypolicyviolation', (event) => resolve(event.effectiveDirective));
      });
      await fetch('https://example.com/').catch(() => null);
      return violation;
    });
    expect(refused).toBe('connect-src');
  });
});
