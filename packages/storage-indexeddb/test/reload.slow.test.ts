/** What a device key must outlive in a real browser: a reload, a closed browser, a crashed one. And what must refuse. */
import { mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium, type BrowserContext, type Frame, type Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { serveSite, type KeyDescription, type PageKeys, type Refusal, type Site } from './pages.ts';

declare const keys: PageKeys;

// KEYGUARD_KILL_ROUNDS says how often a browser is killed.
const ROUNDS = Number(process.env['KEYGUARD_KILL_ROUNDS'] ?? 1);

let site: Site;
let profile: string;
let context: BrowserContext | undefined;

beforeAll(async () => {
  site = await serveSite();
});
afterAll(() => site.close());
beforeEach(async () => {
  profile = await mkdtemp(join(tmpdir(), 'keyguard-profile-'));
});
afterEach(async () => {
  await context?.close();
  context = undefined;
  await rm(profile, { recursive: true, force: true, maxRetries: 5 });
});

async function launch(): Promise<BrowserContext> {
  context = await chromium.launchPersistentContext(profile, { ...inject('chromium'), headless: true });
  return context;
}

async function openPage(path = '/'): Promise<Page> {
  const page = await context!.newPage();
  await page.goto(site.origin + path);
  return page;
}

const getOrCreate = (page: Page | Frame): Promise<KeyDescription | Refusal> => page.evaluate(() => keys.getOrCreate('device'));
const get = (page: Page): Promise<KeyDescription | Refusal | null> => page.evaluate(() => keys.get('device'));

describe('a device key in Chromium', { timeout: 60_000 }, () => {
  it('is one for 30 callers in 6 tabs, and the same one after a reload', async () => {
    await launch();
    const pages = await Promise.all(Array.from({ length: 6 }, () => openPage()));
    const raced = await Promise.all(pages.map((page) => page.evaluate(() => keys.race('device', 5))));
    const keyIds = new Set(raced.flat());
    expect(raced.flat()).toHaveLength(30);
    expect(keyIds.size).toBe(1);
    await pages[0]!.reload();
    const after = await get(pages[0]!);
    expect(after).toMatchObject({ keyId: [...keyIds][0], verifies: true });
  });

  it('survives closing the browser, still signs, and still cannot be exported', async () => {
    await launch();
    const made = await getOrCreate(await openPage());
    expect(made).toMatchObject({ verifies: true });
    await context!.close();
    await launch();
    const page = await openPage();
    expect(await get(page)).toEqual(made);
    expect(await getOrCreate(page)).toEqual(made);
    expect(await page.evaluate(() => keys.exportStored('device'))).toMatchObject({ name: 'InvalidAccessError' });
  });

  it(`survives a browser that is killed as soon as the key is there, ${ROUNDS} times`, { timeout: 60_000 + ROUNDS * 20_000 }, async () => {
    await launch();
    const known: KeyDescription[] = [];
    for (let round = 0; round < ROUNDS; round += 1) {
      const page = await openPage();
      const session = await context!.browser()!.newBrowserCDPSession();
      const made = await page.evaluate((name) => keys.getOrCreate(name), `device-${round}`);
      const gone = new Promise<void>((resolve) => context!.once('close', () => resolve()));
      // The crash takes the answer with it.
      await session.send('Browser.crash').catch(() => {});
      await gone;
      known.push(made as KeyDescription);
      await launch();
      const found = await (await openPage()).evaluate((count) => Promise.all(Array.from({ length: count }, (_, i) => keys.get(`device-${i}`))), known.length);
      expect(found).toEqual(known);
    }
  });

  it('is gone with the private window that made it, and said to be kept no longer than the browser likes', async () => {
    await launch();
    const browser = context!.browser()!;
    const inPrivate = async <T>(work: (page: Page) => Promise<T>): Promise<T> => {
      const window = await browser.newContext();
      try {
        const page = await window.newPage();
        await page.goto(site.origin);
        return await work(page);
      } finally {
        await window.close();
      }
    };
    const made = await inPrivate(async (page) => {
      const key = await getOrCreate(page);
      expect(key).toMatchObject({ verifies: true });
      expect(await page.evaluate(() => keys.persist())).toBe('best-effort');
      await page.reload();
      expect(await get(page)).toEqual(key);
      return key as KeyDescription;
    });
    expect(await inPrivate(get)).toBeNull();
    const next = (await inPrivate(getOrCreate)) as KeyDescription;
    expect(next.keyId).not.toBe(made.keyId);
  });

  it('is kept until the user clears it once the browser has agreed to that', async () => {
    await launch();
    const page = await openPage();
    const key = await getOrCreate(page);
    expect(await page.evaluate(() => keys.persist())).toBe('best-effort');
    const session = await context!.browser()!.newBrowserCDPSession();
    await session.send('Browser.grantPermissions', { origin: site.origin, permissions: ['durableStorage'] });
    expect(await page.evaluate(() => keys.persist())).toBe('persistent');
    expect(await get(page)).toEqual(key);
  });

  it('is refused or gone, and never weaker, where the files of the browser were damaged', async () => {
    await launch();
    const made = (await getOrCreate(await openPage())) as KeyDescription;
    await context!.close();
    const folder = join(profile, 'Default', 'IndexedDB');
    const files = (await readdir(folder, { recursive: true, withFileTypes: true })).filter((entry) => entry.isFile());
    expect(files.length).toBeGreaterThan(0);
    for (const { parentPath, name } of files) await writeFile(join(parentPath, name), Buffer.alloc(64, 0xff));
    await launch();
    const page = await openPage();
    const found = await get(page);
    if (found !== null) expect(found).toMatchObject({ code: 'key_store_unusable', message: expect.stringContaining('clear the data of this site') });
    const next = await getOrCreate(page);
    if ('code' in next) expect(next).toMatchObject({ code: 'key_store_unusable' });
    else {
      expect((next as KeyDescription).keyId).not.toBe(made.keyId);
      expect(await page.evaluate(() => keys.exportStored('device'))).toMatchObject({ name: 'InvalidAccessError' });
    }
  });

  it('is gone once it is deleted, for every tab', async () => {
    await launch();
    const [one, two] = [await openPage(), await openPage()];
    const made = (await getOrCreate(one)) as KeyDescription;
    await two.evaluate(() => keys.delete('device'));
    expect(await get(one)).toBeNull();
    const next = (await getOrCreate(one)) as KeyDescription;
    expect(next.verifies).toBe(true);
    expect(next.keyId).not.toBe(made.keyId);
  });

  it('is not made where the frame has no origin, and the error says why', async () => {
    await launch();
    const page = await openPage('/sandboxed');
    const frame = page.frame('inner')!;
    await frame.waitForLoadState('load');
    expect(await getOrCreate(frame)).toMatchObject({
      name: 'UsageError',
      code: 'key_store_unusable',
      message: expect.stringContaining('sandboxed'),
    });
  });

  it('is not made where the site has no room, and is made once there is', async () => {
    await launch();
    const page = await openPage();
    const session = await context!.newCDPSession(page);
    await session.send('Storage.overrideQuotaForOrigin', { origin: site.origin, quotaSize: 1 });
    expect(await getOrCreate(page)).toMatchObject({ code: 'key_store_unusable', message: expect.stringContaining('room') });
    await session.send('Storage.overrideQuotaForOrigin', { origin: site.origin });
    expect(await getOrCreate(page)).toMatchObject({ verifies: true });
  });

  it('is made anew, in the same page, after the user cleared the data of the site', async () => {
    await launch();
    const page = await openPage();
    const made = (await getOrCreate(page)) as KeyDescription;
    const session = await context!.newCDPSession(page);
    await session.send('Storage.clearDataForOrigin', { origin: site.origin, storageTypes: 'indexeddb' });
    expect(await get(page)).toBeNull();
    const next = (await getOrCreate(page)) as KeyDescription;
    expect(next.verifies).toBe(true);
    expect(next.keyId).not.toBe(made.keyId);
  });
});
