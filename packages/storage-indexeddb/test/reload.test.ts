/** What a device key must outlive in a real browser: a reload, a closed browser, a crashed one. And what must refuse. */
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { chromium, type BrowserContext, type Frame, type Page } from 'playwright-core';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, inject, it } from 'vitest';
import { serveSite, type KeyDescription, type PageKeys, type Refusal, type Site } from './pages.ts';

declare const keys: PageKeys;

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

  it('survives a browser that crashes as soon as the key is there', async () => {
    await launch();
    const page = await openPage();
    const session = await context!.browser()!.newBrowserCDPSession();
    const made = await getOrCreate(page);
    const gone = new Promise<void>((resolve) => context!.once('close', () => resolve()));
    // The crash takes the answer with it.
    await session.send('Browser.crash').catch(() => {});
    await gone;
    await launch();
    expect(await get(await openPage())).toEqual(made);
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
