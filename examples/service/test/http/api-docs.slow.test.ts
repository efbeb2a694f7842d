/** The page that shows the API's document, in a real browser: nothing foreign in it, and all of the API. */
import { chromium, type Browser, type Page } from 'playwright-core';
import { afterAll, beforeAll, describe, expect, inject, it } from 'vitest';
import { startInProcess, type Stage } from '../matrix/stage.ts';

describe('the page of the API', { timeout: 60_000 }, () => {
  let stage: Stage;
  let browser: Browser;

  beforeAll(async () => {
    stage = await startInProcess();
    browser = await chromium.launch(inject('chromium'));
  }, 120_000);
  afterAll(async () => {
    await browser?.close();
    await stage.stop();
  }, 60_000);

  it('comes with a policy that lets no script in but its own', async () => {
    const answer = await fetch(`${stage.origin}/api/docs`);
    const policy = answer.headers.get('content-security-policy')!;
    expect(policy).toContain("default-src 'none'");
    expect(policy).not.toMatch(/unsafe|https?:|\*/);
    expect(answer.headers.get('content-type')).toBe('text/html; charset=utf-8');
    const page = await answer.text();
    expect(page).not.toMatch(/<script(?![^>]* src="\/api\/docs\/)|https?:|style=|onload|<style/);
    for (const path of ['/api/docs/', '/api/docs/..%2fapp.ts', '/api/docs/package.json', '/api/docs/swagger-ui-bundle.js.map']) expect((await fetch(stage.origin + path)).status).toBe(401);
  });

  it.each([
    ['light', 'rgb(250, 250, 250)'],
    ['dark', 'rgb(28, 32, 34)'],
  ] as const)('shows every operation and lets it be tried, in %s', async (colorScheme, background) => {
    const page: Page = await browser.newPage({ colorScheme });
    const [faults, foreign]: [string[], string[]] = [[], []];
    page.on('console', (message) => {
      if (['error', 'warning'].includes(message.type())) faults.push(message.text());
    });
    page.on('pageerror', (error) => faults.push(String(error)));
    page.on('request', (request) => {
      if (!request.url().startsWith(`${stage.origin}/`) && !request.url().startsWith('data:')) foreign.push(request.url());
    });
    await page.goto(`${stage.origin}/api/docs`);
    await page.waitForSelector('.opblock-tag');
    expect(await page.title()).toBe('KeyGuard API');
    expect(await page.evaluate(() => getComputedStyle(document.body).backgroundColor)).toBe(background);

    const { json } = await stage.call('GET', '/api/openapi.json');
    const ids = Object.values(json.paths as Record<string, Record<string, { operationId: string }>>).flatMap((methods) => Object.values(methods).map(({ operationId }) => operationId));
    // One tag at a time: with all of them open the page draws a hundred and more forms anew at each click.
    const tags = await page.locator('.opblock-tag').count();
    const shown: (string | null)[] = [];
    for (let i = 0; i < tags; i += 1) {
      const section = page.locator('.opblock-tag-section').nth(i);
      await section.locator('.opblock-tag').click();
      await section.locator('.opblock').first().waitFor();
      shown.push(...(await section.locator('.opblock').evaluateAll((blocks) => blocks.map(({ id }) => id))));
      await section.locator('.opblock-tag').click();
      await section.locator('.opblock').first().waitFor({ state: 'detached' });
    }
    expect(ids.filter((id) => !shown.some((block) => block?.endsWith(`-${id}`)))).toEqual([]);
    expect(shown).toHaveLength(ids.length);

    await page.locator('.opblock-tag', { hasText: 'Calls of devices' }).click();
    const one = page.locator('#operations-Calls_of_devices-getTime, [id$="-getTime"]').first();
    await one.locator('.opblock-summary-control').click();
    await one.locator('.try-out__btn').click();
    await one.locator('.execute').click();
    const answered = one.locator('.live-responses-table .response-col_description .microlight, .live-responses-table .highlight-code').first();
    await answered.waitFor();
    expect(await answered.textContent()).toContain('server_time');
    expect([faults, foreign]).toEqual([[], []]);
    const shots = process.env['KEYGUARD_SCREENSHOTS'];
    if (shots !== undefined) await page.screenshot({ path: `${shots}/api-docs-${colorScheme}.png`, fullPage: false });
    await page.close();
  });
});
