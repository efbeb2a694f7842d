/** The client on the `fetch` of a real browser: msw is its service worker. */
import { setupWorker } from 'msw/browser';
import { clientNetworkSuite } from './client-network.ts';

const worker = setupWorker();

clientNetworkSuite('Chromium', {
  start: async () => void (await worker.start({ quiet: true, onUnhandledFrame: 'bypass' })),
  use: (...handlers) => worker.use(...handlers),
  reset: () => worker.resetHandlers(),
  stop: async () => void (await worker.stop()),
});
