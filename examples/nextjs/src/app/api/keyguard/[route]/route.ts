import { devices } from '../../../../keyguard.ts';

export const GET = devices;
export const POST = devices;
